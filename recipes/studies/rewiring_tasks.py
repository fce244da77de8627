"""The tasks of the study of rewiring: what is learnt, and from what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_connectome.data import DataArguments, load_corpus
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    import argparse

    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What is learnt, and from what."""

    densities: tuple[float, ...]
    rates: tuple[float, ...]
    batch: int
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    train: Tensor
    """Rows of tokens, or of pixels with the label behind them."""
    held_out: Tensor
    accuracy: Callable[[nn.Module, Tensor], float] | None = None


def language_task(options: argparse.Namespace) -> Task:
    """Return a GPT-2 of two layers on text."""
    from transformers import GPT2Config, GPT2LMHeadModel

    data = DataArguments(
        dataset=options.dataset,
        eval_dataset=options.eval_dataset,
        tokenizer="bpe:1024",
        block_size=64,
        max_train_tokens=1_000_000,
        max_eval_tokens=16_384,
    )
    corpus = load_corpus(data)
    assert corpus.tokenizer is not None
    print(corpus.describe())
    config = GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=2,
        n_positions=64,
        vocab_size=len(corpus.tokenizer),
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )

    def rows(blocks: Any) -> Tensor:
        return torch.stack([torch.as_tensor(b["input_ids"]) for b in blocks]).long()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = model(input_ids=batch, labels=batch).loss
        return found

    train, held_out = rows(corpus.train), rows(corpus.evaluation)
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    return Task((0.3, 0.05), rates, 16, lambda: GPT2LMHeadModel(config), loss, train, held_out)


def digits_task(options: argparse.Namespace) -> Task:
    """Return a network of three hidden layers on scikit-learn's 1,797 digits."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = torch.cat([torch.tensor(pixels / 16.0), torch.tensor(labels)[:, None]], dim=1).float()
    rows = rows[torch.randperm(len(rows), generator=generator(0, "digits"))]
    sizes = [64, *[options.width] * 3]

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for num_in, num_out in itertools.pairwise(sizes):
            layers += [nn.Linear(num_in, num_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1].long())

    def accuracy(model: nn.Module, batch: Tensor) -> float:
        return float((model(batch[:, :-1]).argmax(1) == batch[:, -1]).float().mean())

    rates = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    return Task((0.01,), rates, 32, model, loss, rows[:-450], rows[-450:], accuracy)


TASKS = {"lm": language_task, "mlp": digits_task}
STEPS = {"lm": 400, "mlp": 600}
