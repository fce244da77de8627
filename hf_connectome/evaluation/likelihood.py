"""How well a causal model predicts held-out text: nats per token and bits per byte.

Every byte of the text is scored, so bits per byte compare models of different tokenizers; nats per
token do not. Not the loss of a training's evaluation: that one reads blocks, whose first tokens see
little of the text before them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.data import DataArguments
from hf_connectome.data.corpus import read_texts
from hf_connectome.data.documents import find_corpus, hold_out, index_documents
from hf_connectome.errors import ConfigError, DataError
from hf_connectome.evaluation.metrics.formulas import bits_per_byte
from hf_connectome.evaluation.paired import t_quantile
from hf_connectome.evaluation.surprisal import context_length, token_surprisals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class HeldOutText:
    """Documents that no model was trained on, the same for all models."""

    name: str
    documents: list[str]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(len(document.encode()) for document in self.documents)

    @property
    def digest(self) -> str:
        """SHA-256 of the documents in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(hashlib.sha256(document.encode()).digest())
        return digest.hexdigest()

    def describe(self) -> str:
        """Say how much text there is."""
        return f"{self.name}: {len(self.documents):,} documents, {self.num_bytes:,} bytes"


@dataclass(frozen=True)
class TextResult:
    """How well a model predicts one text.

    Attributes:
        bits_per_byte: Summed bits of all tokens over the bytes of the text.
        low: Lower end of its 95 % interval over documents, None for one document.
        high: Upper end.
        loss: Nats per token, of the same tokens.
        uniform_bits_per_byte: Of a guess that gives every token of the tokenizer the same
            probability: what a model that knows nothing reaches.
        num_tokens: Scored, all but the one that stands before a document.
        num_bytes: Of the text.
        num_documents: Of the text.
        context: Tokens that the model saw at most; None: the whole document.
    """

    bits_per_byte: float
    low: float | None
    high: float | None
    loss: float
    uniform_bits_per_byte: float
    num_tokens: int
    num_bytes: int
    num_documents: int
    context: int | None

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return asdict(self)


def held_out_text(
    name: str, *, fraction: float | None = None, max_bytes: int | None = None
) -> HeldOutText:
    """Read held-out documents, in the pseudo-random order of ``document_key``.

    Args:
        name: a corpus, as in ``DataArguments.dataset``.
        fraction: only the documents that ``eval_fraction`` holds out in training; None takes all.
        max_bytes: of the first documents; the last one is cut, between two characters.

    Raises:
        DataError: it does not exist, has no text, or is one document of which a part was asked.
        ConfigError: it is tokens and no text, or ``max_bytes`` is below 1.
    """
    if max_bytes is not None and max_bytes < 1:
        raise ConfigError(f"max_bytes is {max_bytes}; expected 1 or more, or null for all text.")
    if find_corpus(name)[0] == "bin":
        raise ConfigError(
            f"{name!r} is tokens (.bin) of one tokenizer; every model reads the text by its own. "
            "Name the text that they were made from."
        )
    documents = index_documents(name, read_texts(DataArguments(dataset=name)))
    if fraction is not None:
        documents = documents.where(hold_out(documents.rows["draw"], fraction, name), name)
    kept, left = [], math.inf if max_bytes is None else max_bytes
    for document in documents:
        if left <= 0:
            break
        data = document.encode()
        cut = document if len(data) <= left else data[: int(left)].decode(errors="ignore")
        kept += [cut] if cut else []
        left -= len(data)
    if not kept:
        raise DataError(
            f"max_bytes is {max_bytes}, less than the first character of {name!r}. Raise it."
        )
    return HeldOutText(name, kept)


def text_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    context: int | None = None,
    batch_size: int = 8,
) -> TextResult:
    """Measure how well a model predicts documents, each by itself.

    Before a document stands the token that begins one (bos, else eos, which ends the one before it
    in training). Long documents are read in windows that overlap by half, see
    :func:`hf_connectome.evaluation.surprisal.token_surprisals`.

    Args:
        model: Causal.
        tokenizer: The one that it was trained with.
        documents: Texts.
        context: Tokens that the model sees at most; None takes all that it has positions for.
        batch_size: Windows in one forward pass.

    Raises:
        DataError: No document, no byte, or a tokenizer without a token that begins a text.
        ConfigError: A context that the model does not have, or a model that is not causal.
        HostMismatchError: The tokenizer has ids that the model has no embedding for.

    Source: the interval is that of a ratio of means over documents (Cochran 1977, Sampling
    Techniques, 6.4), with Student's t.
    """
    begin = tokenizer.bos_token_id
    begin = tokenizer.eos_token_id if begin is None else begin
    if begin is None:
        raise DataError(
            f"{type(tokenizer).__name__} has neither a bos_token nor an eos_token, so nothing can "
            "stand before the first token of a text. Set one."
        )
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    sequences = [[begin, *ids] for ids in encoded]
    values = token_surprisals(model, sequences, context=context, batch_size=batch_size)
    nats = np.array([float(value[1:].sum()) for value in values])
    sizes = np.array([float(len(document.encode())) for document in documents])
    num_tokens = sum(len(ids) for ids in encoded)
    if num_tokens == 0:
        raise DataError(f"{len(documents)} documents have no token. Leave empty texts out.")
    bits = bits_per_byte(nats.tolist(), sizes.tolist())
    half = _half_interval(nats / math.log(2), sizes, bits)
    return TextResult(
        bits_per_byte=bits,
        low=None if half is None else bits - half,
        high=None if half is None else bits + half,
        loss=float(nats.sum()) / num_tokens,
        uniform_bits_per_byte=num_tokens * math.log2(len(tokenizer)) / float(sizes.sum()),
        num_tokens=num_tokens,
        num_bytes=int(sizes.sum()),
        num_documents=len(documents),
        context=context_length(model) if context is None else context,
    )


def _half_interval(amounts: Any, sizes: Any, ratio: float) -> float | None:
    """Return half of the 95 % interval of ``sum(amounts) / sum(sizes)``, None for one document."""
    num = len(sizes)
    if num < 2:
        return None
    spread = float(((amounts - ratio * sizes) ** 2).sum()) * num / (num - 1)
    return t_quantile(0.975, num - 1) * math.sqrt(spread) / float(sizes.sum())
