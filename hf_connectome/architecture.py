"""The model class and config that a connectome records -> a fresh host. Nothing is downloaded.

Whether a host fits is hosts.py's; which architecture to evolve for is fresh.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.config import ConnectomeConfig


_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 20_000
"""Several times those of the largest models; a stranger's config may ask for a billion."""


def build_host(
    config: ConnectomeConfig,
    *,
    seed: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    overwritten: Collection[str] = (),
) -> nn.Module:
    """Build a fresh model of the architecture that a connectome records. Nothing is downloaded.

    Args:
        config: with ``architecture`` and ``base_config``.
        seed: seeds torch's global generator for the initialisation, and puts it back afterwards.
        device: 'meta' gives names and shapes without memory.
        dtype: of the weights; explicit, because a recorded bfloat16 would round 0.02.
        overwritten: parameters whose initial values nobody reads. They are not drawn, which is
            most of the time that a model takes, if everything else is the same without them.

    Raises:
        ConfigError: nothing is recorded, the class is not one of transformers' models, or it
            cannot be built from the recorded config.
    """
    if config.architecture is None or config.base_config is None:
        raise ConfigError(
            "the connectome records no architecture, so no host can be built for it. Give one: "
            "ConnectomeModel.from_pretrained(model, path), or "
            "Connectome.from_pretrained(path, host=model)."
        )
    if overwritten:
        with suppress(ConfigError):  # a config that is wrong is wrong below, too
            host, drew = _build(config, seed=seed, device=device, dtype=dtype, undrawn=True)
            if not drew and _is_whole(host, overwritten):
                return host
    return _build(config, seed=seed, device=device, dtype=dtype, undrawn=False)[0]


def _build(
    config: ConnectomeConfig,
    *,
    seed: int | None,
    device: str,
    dtype: torch.dtype,
    undrawn: bool,
) -> tuple[nn.Module, bool]:
    """Build a model, and say whether that moved torch's generator."""
    model_class, base_config = _recorded_class(config)
    bare = device == "meta"
    with (
        _bounded(),
        _uninitialised() if bare else nullcontext(),
        torch.random.fork_rng(devices=[], enabled=seed is not None),
        torch.device(device),
        _Undrawn() if undrawn else nullcontext(),
    ):
        if seed is not None:
            torch.manual_seed(seed)
        start = torch.get_rng_state()
        try:
            base_config.dtype = dtype  # older releases of transformers keep the recorded one
            model: Any = model_class._from_config(base_config, dtype=dtype)
            if bare:  # initialising would have tied the weights
                model.tie_weights()
        except Exception as error:  # any architecture may raise anything
            raise ConfigError(
                f"no {config.architecture} can be built from the recorded config: {error}. Build "
                "the host yourself and use ConnectomeModel.from_pretrained(model, path)."
            ) from error
        drew = not torch.equal(torch.get_rng_state(), start)
    name_causal_loss(model)
    host: nn.Module = model
    return host, drew


class _Undrawn(TorchFunctionMode):
    """Puts NaN where a model would draw, so that it shows what depends on a draw."""

    # By name: transformers puts functions of its own in the place of torch.nn.init's.
    _DRAWS = ("normal_", "uniform_", "kaiming_uniform_")

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        given = dict(kwargs or {})
        if getattr(func, "__name__", None) not in self._DRAWS:
            return func(*args, **given)
        tensor: Tensor = args[0] if args else given["tensor"]
        tensor.detach().fill_(torch.nan)
        return tensor


def _is_whole(host: nn.Module, overwritten: Collection[str]) -> bool:
    """Say whether nothing but the parameters that are overwritten is missing a draw."""
    kept = [p for name, p in host.named_parameters() if name not in overwritten]
    rest: list[Tensor] = [*kept, *host.buffers()]
    return not any(bool(value.isnan().any()) for value in rest if value.is_floating_point())


def name_causal_loss(model: Any) -> None:
    """Name the loss of a causal model that transformers cannot tell from its class (GPT-2).

    It would compute the same loss, but warn, and count the first label of every row.
    """
    if getattr(model, "loss_type", "") is None and hasattr(model, "lm_head"):
        model.loss_type = "ForCausalLM"


def _uninitialised() -> Any:
    """Skip the initial values, which on the meta device cost time and give nothing."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop a model that registers more parameters than any real one has."""
    count = 0

    def register(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        del module, name, parameter
        count += 1
        if count > _MOST_PARAMETERS:
            raise ConfigError(f"it has more than {_MOST_PARAMETERS} parameters")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _check_layers(fields: Mapping[str, Any]) -> None:
    """Refuse, before transformers makes lists of that length, what no model has layers of."""
    for key, value in fields.items():
        if isinstance(value, dict):
            _check_layers(value)
        elif ("layer" in key or "depth" in key) and isinstance(value, int) and value > _MOST_LAYERS:
            raise ConfigError(f"{key} is {value}; expected at most {_MOST_LAYERS}")


def _recorded_class(config: ConnectomeConfig) -> tuple[Any, Any]:
    """Look up the recorded class among transformers' own; nothing from the file is executed."""
    import transformers

    assert config.architecture is not None
    assert config.base_config is not None
    found = getattr(transformers, config.architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ConfigError(
            f"the recorded architecture {config.architecture!r} is no model class of transformers "
            f"{transformers.__version__}. Upgrade transformers, or build the host yourself and use "
            "ConnectomeModel.from_pretrained(model, path)."
        )
    fields = dict(config.base_config)
    try:
        _check_layers(fields)  # may be nested too deep for Python, like what follows
        base_config = transformers.AutoConfig.for_model(fields.pop("model_type", None), **fields)
        # These may name a kernel on the Hub, whose code transformers would fetch and run.
        base_config._attn_implementation = base_config._experts_implementation = None
    except Exception as error:  # any architecture's validators may raise anything
        raise ConfigError(
            f"the recorded config of {config.architecture} is refused by transformers: {error}"
        ) from error
    if type(base_config) is not found.config_class:
        raise ConfigError(
            f"{config.architecture!r} does not take a {type(base_config).__name__}; the config was "
            "altered."
        )
    return found, base_config
