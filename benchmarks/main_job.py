"""The main job, evolve.py's trainer, beside a bare training loop on the same model and batches.

    python benchmarks/main_job.py [--size small] [--steps 12] [--device cuda] [--json FILE]

Each round trains two generations with GenerationalTrainer, then as many steps of a plain loop:
fused AdamW, clipping, a cosine, the same blocks in batches of the same size. The first steps of
both are not counted. Seconds are CPU time (CUDA: wall time). Waiting: the share of a step in which
the trainer fetches its batches. A boundary is all between two generations: scores, selection,
reset, the saved connectome; in training steps, for every ten million weights in scope.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measuring import finish, parser_of
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from hf_connectome import GenerationalArguments, GenerationalTrainer
from hf_connectome.data import collate
from hf_connectome.data.blocks import map_blocks

if TYPE_CHECKING:
    import argparse

SIZES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8192},
    "gpt2": {},
}
BATCH, BLOCK, SKIPPED, RATE = 16, 128, 2, 3e-3


class Clock:
    """Adds up the seconds of what runs under it."""

    def __init__(self, device: str) -> None:
        """Start at nothing."""
        self.seconds, self._device = 0.0, device

    def now(self) -> float:
        """Return CPU seconds of this process; on CUDA seconds once all kernels are done."""
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and add what it took."""
        began = self.now()
        result = job(*arguments)
        self.seconds += self.now() - began
        return result


class Timed(TrainerCallback):
    """Times the steps of a run, without the first ones and without boundaries."""

    def __init__(self, clock: Clock) -> None:
        """Take the clock to read."""
        self._clock, self._last, self.steps = clock, 0.0, list[float]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Begin where the step before ended, so that fetching and bookkeeping are in it."""
        del control, parts
        if state.global_step in (0, args.steps_per_generation):
            self._last = self._clock.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Note the step."""
        del control, parts
        now = self._clock.now()
        if state.global_step > SKIPPED and state.global_step % args.steps_per_generation != 1:
            self.steps.append(now - self._last)
        self._last = now


class TimedTrainer(GenerationalTrainer):
    """Times the fetching of batches and the boundaries."""

    def __init__(self, *parts: Any, clocks: dict[str, Clock], **options: Any) -> None:
        """Take a clock for each."""
        self._clocks = clocks
        super().__init__(*parts, **options)

    def get_batch_samples(self, *parts: Any, **options: Any) -> Any:
        """Fetch the batches of a step."""
        fetch = super().get_batch_samples
        return self._clocks["waiting"].run(lambda: fetch(*parts, **options))

    def advance_to(self, step: int) -> None:
        """Cross a boundary, if there is one."""
        self._clocks["boundary"].run(super().advance_to, step)


def model_of(options: argparse.Namespace) -> GPT2LMHeadModel:
    """Build the model, the same in both loops."""
    torch.manual_seed(0)
    config = GPT2Config(**SIZES[options.size], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model: GPT2LMHeadModel = GPT2LMHeadModel(config).to(options.device)
    model.loss_type = "ForCausalLM"
    return model


def trained(options: argparse.Namespace, tokens: np.ndarray[Any, Any]) -> dict[str, float]:
    """Run two generations of the trainer."""
    clocks = {name: Clock(options.device) for name in ("step", "waiting", "boundary")}
    steps = Timed(clocks["step"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = GenerationalArguments(
            folder,
            generations=2,
            steps_per_generation=options.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            logging_steps=20,
            save_strategy="no",
            use_cpu=options.device == "cpu",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = TimedTrainer(
            model_of(options),
            arguments,
            clocks=clocks,
            train_dataset=map_blocks([tokens], fingerprint="benchmark"),
            data_collator=collate,
            callbacks=[steps],
        )
        trainer.train()
    step = statistics.median(steps.steps)
    weights = trainer.connectome.num_weights
    boundary = clocks["boundary"].seconds / 2
    return {
        "seconds a step": step,
        "waiting share": clocks["waiting"].seconds / (2 * options.steps) / step,
        "boundary seconds": boundary,
        "boundary steps / 10M weights": boundary / step / (weights / 1e7),
    }


def bare(options: argparse.Namespace, tokens: np.ndarray[Any, Any]) -> float:
    """Return the seconds a step of a plain loop."""
    model, clock = model_of(options), Clock(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    seconds = []
    last = clock.now()
    for step, ids in enumerate(batches(tokens, 2 * options.steps)):
        ids = ids.to(options.device)
        labels = ids.clone()
        labels[:, 0] = -100
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * (step / options.steps % 1)))
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now = clock.now()
        seconds.append(now - last)
        last = now
    return statistics.median(seconds[SKIPPED:])


def batches(tokens: np.ndarray[Any, Any], count: int) -> Iterator[torch.Tensor]:
    """Give random batches of blocks."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield torch.from_numpy(tokens[draw.integers(len(tokens), size=BATCH)].astype(np.int64))


def main() -> None:
    """Print one row a way to train."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=24, help="a generation")
    options = parser.parse_args()
    vocabulary = SIZES[options.size].get("vocab_size", 50257)
    draw = np.random.default_rng(0)
    tokens = draw.integers(vocabulary, size=(4096, BLOCK), dtype=np.uint16)
    ours, plain = [], []
    for _ in range(options.rounds):
        plain.append(bare(options, tokens))
        ours.append(trained(options, tokens))
    ratios = [one["seconds a step"] / other for one, other in zip(ours, plain, strict=True)]
    figures = {name: statistics.median(one[name] for one in ours) for name in ours[0]}
    rates = (BATCH * BLOCK / statistics.median(plain), BATCH * BLOCK / figures["seconds a step"])
    rows = [
        {"loop": "bare", "tokens a second": rates[0], "step / bare": 1.0},
        {"loop": "trainer", "tokens a second": rates[1], "step / bare": statistics.median(ratios)},
    ]
    finish(options, rows, main_job=figures, rounds={"trainer": ours, "bare": plain})
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
