"""Models and a task for lm-eval: a wired model under its own name, and scores by token.

lm-eval is imported when a class is first asked for, so that this module costs nothing without it.
What is evaluated and what comes of it is lm.py's.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.errors import ConfigError, HostMismatchError, some

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from hf_connectome.connectome import Connectome

Request = tuple[Any, list[int], list[int]]
"""What lm-eval scores: a cache key, the tokens of the context, those of the continuation."""


def fit(context: list[int], continuation: list[int], max_length: int) -> Iterator[Request]:
    """Cut a request into ones that a model of ``max_length`` positions can read.

    The context loses tokens from the left, as in lm-eval. A continuation that is longer than the
    model reads is scored in windows, each after the one token before it, as lm-eval does for
    rolling likelihoods (its ``hf`` model stops with an assertion here).
    """
    room = max(1, max_length + 1 - len(continuation))
    yield None, context[-room:], continuation[:max_length]
    for start in range(max_length, len(continuation), max_length):
        yield None, continuation[start - 1 : start], continuation[start : start + max_length]


@functools.cache
def windowed_lm() -> Any:
    """Build lm-eval's model of transformers, with short contexts handled and reported once."""
    from lm_eval.models.huggingface import HFLM

    class WindowedLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
        """Scores any request, however short the model's context is."""

        num_requests = num_shortened = num_windowed = 0

        def __init__(self, pretrained: Any, **options: Any) -> None:
            with _tied_already(pretrained):
                super().__init__(pretrained, **options)

        def _loglikelihood_tokens(
            self, requests: Sequence[Request], *args: Any, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            score = super()._loglikelihood_tokens
            if self.backend != "causal":
                answers: list[tuple[float, bool]] = score(requests, *args, **kwargs)
                return answers
            cut = [list(fit(c, t, self.max_length)) for _, c, t in requests]
            self._report(requests, cut)
            # A request in one piece keeps its key, under which lm-eval caches the answer.
            pieces = [
                (key if len(parts) == 1 else None, *part[1:])
                for (key, _, _), parts in zip(requests, cut, strict=True)
                for part in parts
            ]
            scored = iter(score(pieces, *args, **kwargs))
            return [_sum([next(scored) for _ in parts]) for parts in cut]

        def _report(self, requests: Sequence[Request], cut: Sequence[Sequence[Request]]) -> None:
            warned = bool(self.num_shortened or self.num_windowed)
            self.num_requests += len(requests)
            self.num_windowed += sum(len(parts) > 1 for parts in cut)
            self.num_shortened += sum(
                len(parts) == 1 and len(parts[0][1]) < len(context)
                for (_, context, _), parts in zip(requests, cut, strict=True)
            )
            if not warned and (self.num_shortened or self.num_windowed):
                warnings.warn(
                    f"{self.num_shortened} of {self.num_requests} requests lost the left end of "
                    f"their context and {self.num_windowed} were scored in windows: the model "
                    f"reads {self.max_length} tokens. Scores are comparable only with models of "
                    "that context length.",
                    stacklevel=2,
                )

    return WindowedLM


@contextlib.contextmanager
def _tied_already(model: Any) -> Iterator[None]:
    """Let lm-eval not tie the weights of a model in memory, which are.

    transformers cannot tie those that a PEFT layer wraps, as a frozen skill's does.
    """
    if not isinstance(model, str):
        model.tie_weights = lambda: None
    try:
        yield
    finally:
        if not isinstance(model, str):
            del model.tie_weights


def _sum(answers: Sequence[tuple[float, bool]]) -> tuple[float, bool]:
    return sum(a for a, _ in answers), all(greedy for _, greedy in answers)


@dataclass(frozen=True)
class Source:
    """What ``--model_args`` of the connectome model say: which weights, under which connectome.

    A connectome alone gives a fresh wired model; with ``pretrained`` it is a frozen skill on that
    base; with ``checkpoint`` it is what the trained weights are checked against.
    """

    connectome: str | None = None
    """Folder or Hub id; by default the one inside of ``checkpoint``."""
    pretrained: str | None = None
    """Folder or Hub id of a trained base."""
    checkpoint: str | None = None
    """Folder or Hub id of a trained sparse model."""
    revision: str | None = None
    """Of the connectome."""
    subfolder: str | None = None
    """Of the connectome."""
    seed: int = 0
    """Of a fresh model."""
    reset: str | None = None
    """First values of a fresh model, by default those that the connectome records."""

    def __post_init__(self) -> None:
        if self.pretrained and self.checkpoint:
            raise ConfigError(
                f"pretrained={self.pretrained!r} and checkpoint={self.checkpoint!r} were both "
                "given; expected one. pretrained= is a base to put the connectome on, checkpoint= "
                "a model that was trained under it."
            )
        if not (self.connectome or self.checkpoint):
            raise ConfigError(
                "--model connectome was given neither connectome= nor checkpoint=. Use "
                "--model_args connectome=PATH_OR_REPO, or --model hf for a model without one."
            )

    @classmethod
    def of(cls, model_args: Mapping[str, Any]) -> Source:
        """Take what concerns it from lm-eval's ``--model_args``."""
        return cls(**{f: model_args[f] for f in cls.__dataclass_fields__ if model_args.get(f)})

    @property
    def weights(self) -> str | None:
        """Where trained weights are, if any."""
        return self.pretrained or self.checkpoint

    def folder(self) -> Path:
        """Fetch the connectome, and its tokenizer if it has one."""
        from hf_connectome.hub import TOKENIZER_FILES, fetch

        subfolder = self.subfolder
        if self.connectome is None:
            subfolder = subfolder or "connectome"
        source = self.connectome or self.checkpoint
        assert source is not None
        return fetch(source, subfolder=subfolder, revision=self.revision, also=TOKENIZER_FILES)

    def tokenizer(self) -> str:
        """Return the folder or Hub id of the tokenizer: beside the weights, else the connectome's.

        Raises:
            ConfigError: the connectome comes without one, and nothing else was named.
        """
        if self.weights:
            return self.weights
        folder = self.folder()
        if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").is_file():
            raise ConfigError(
                f"there is no tokenizer in {str(folder)!r}, where the connectome is. Name the one "
                "it was evolved with: --model_args …,tokenizer=PATH_OR_REPO."
            )
        return str(folder)


def check_weights(connectome: Connectome, model: nn.Module) -> None:
    """Check that a trained model obeys a connectome: every dead weight is exactly 0.

    Raises:
        HostMismatchError: it has other parameters, or a dead weight lives.
    """
    from hf_connectome.hosts import check_host

    parameters = check_host(connectome, model)
    alive = {}
    for name, entry in connectome.items():
        weight = parameters[name].detach().cpu()
        alive[name] = int(torch.count_nonzero(weight[~entry.mask()]))
    odd = [name for name, num in alive.items() if num]
    if odd:
        raise HostMismatchError(
            f"{sum(alive.values()):,} weights that the connectome has as dead are not 0 in the "
            f"checkpoint ({some(odd)}): it was not trained under this connectome. Name the one "
            "that it was trained under, or use --model hf."
        )


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Check that every token has a row of the embedding.

    Raises:
        HostMismatchError: there are more tokens than rows.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise HostMismatchError(
            f"the tokenizer has {len(tokenizer)} tokens, the embedding of the model {rows} rows. "
            "Use the tokenizer that the model was trained with."
        )


@functools.cache
def connectome_lm() -> Any:
    """Build lm-eval's model ``connectome`` and register it."""
    from lm_eval.api.registry import register_model

    from hf_connectome.connectome import Connectome
    from hf_connectome.modeling import ConnectomeModel

    base: Any = windowed_lm()

    @register_model("connectome")
    class ConnectomeLM(base):  # type: ignore[misc]  # lm-eval has no types
        """A model under a connectome, as ``Source`` says; further arguments as for ``hf``."""

        def __init__(
            self, *, base_revision: str = "main", tokenizer: str | None = None, **options: Any
        ) -> None:
            self.source = Source(
                **{f: options.pop(f) for f in Source.__dataclass_fields__ if f in options}
            )
            self.wiring = Connectome.from_pretrained(self.source.folder())
            super().__init__(
                self.source.weights or str(self.source.connectome),
                revision=base_revision,
                tokenizer=tokenizer or self.source.tokenizer(),
                **options,
            )

        def _get_config(self, pretrained: str, **options: Any) -> None:
            if self.source.weights:
                super()._get_config(pretrained, **options)
                return
            fresh = ConnectomeModel.from_pretrained(
                self.source.folder(), seed=self.source.seed, reset=self.source.reset
            )
            self._model = fresh.get_base_model()
            self._config = self._model.config

        def _create_tokenizer(self, *args: Any, **options: Any) -> None:
            super()._create_tokenizer(*args, **options)
            _check_tokenizer(self.wiring, self.tokenizer)

        def _create_model(self, pretrained: str, **options: Any) -> None:
            if self.source.weights:
                super()._create_model(pretrained, **options)
            if self.source.checkpoint:
                check_weights(self.wiring, self._model)
            elif self.source.pretrained:
                skill = ConnectomeModel.from_pretrained(self._model, self.source.folder())
                self._model = skill.merge_and_unload()
            self._model = _placed(self._model, options.get("dtype"), self.device)
            check_vocabulary(self._model, self.tokenizer)

    return ConnectomeLM


def _check_tokenizer(connectome: Connectome, tokenizer: Any) -> None:
    from hf_connectome.data import tokenizer_digest
    from hf_connectome.hosts import check_tokenizer

    if connectome.config is not None and connectome.config.tokenizer_digest is not None:
        check_tokenizer(connectome, tokenizer_digest(tokenizer))


def _placed(model: nn.Module, dtype: str | torch.dtype | None, device: torch.device) -> nn.Module:
    """Move the model; 'auto' keeps the dtype that it has."""
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    return model.to(device=device, dtype=dtype)


@functools.lru_cache(maxsize=4)
def _load_tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision or "main")


def tokenizer_of(model_args: Mapping[str, Any]) -> Any:
    """Load the tokenizer of a model that was given to lm-eval by ``--model_args``.

    Raises:
        ConfigError: they name no model that has one.
    """
    given, plain = model_args.get("tokenizer"), model_args.get("pretrained")
    if given:
        return _load_tokenizer(str(given), None)
    if model_args.get("connectome") or model_args.get("checkpoint"):
        return _load_tokenizer(Source.of(model_args).tokenizer(), model_args.get("base_revision"))
    if plain:
        return _load_tokenizer(str(plain), model_args.get("revision"))
    raise ConfigError(
        "the task counts tokens, but the model's arguments name no tokenizer. Give it: "
        "--metadata tokenizer=PATH_OR_REPO."
    )


def choose(losses: Sequence[float], num_tokens: Sequence[int]) -> tuple[int, int]:
    """Return the choices of least summed loss and of least mean loss a token; ties to the first.

    Source: github.com/karpathy/build-nanogpt, hellaswag.py, whose scoring the paper's code has:
    ``pred = sum_loss.argmin()``, ``pred_norm = avg_loss.argmin()``.

    Example:
        >>> choose([6.0, 5.0, 7.0], [3, 2, 7])
        (1, 2)
    """
    means = [loss / num for loss, num in zip(losses, num_tokens, strict=True)]
    return min(range(len(losses)), key=losses.__getitem__), min(
        range(len(means)), key=means.__getitem__
    )


@functools.cache
def _per_token_task() -> Any:
    from lm_eval.api.task import ConfigurableTask

    class PerTokenTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
        """Multiple choice where acc_norm divides by tokens; the rest is the task file's."""

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config={k: v for k, v in config.items() if k != "class"})

        def process_results(
            self, doc: dict[str, Any], results: Sequence[tuple[float, bool]]
        ) -> dict[str, float]:
            tokenizer = tokenizer_of(self.config.metadata)
            context = self.doc_to_text(doc)
            texts = [context + self.config.target_delimiter + c for c in self.doc_to_choice(doc)]
            before = len(tokenizer.encode(context, add_special_tokens=False))
            num_tokens = [
                len(tokenizer.encode(text, add_special_tokens=False)) - before for text in texts
            ]
            by_sum, by_mean = choose([-score for score, _ in results], num_tokens)
            gold = self.doc_to_target(doc)
            return {"acc": float(by_sum == gold), "acc_norm": float(by_mean == gold)}

    return PerTokenTask


def __getattr__(name: str) -> Any:
    if name == "PerTokenTask":  # the name that task files have
        return _per_token_task()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
