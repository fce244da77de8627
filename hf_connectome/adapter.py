"""Connectomes as a PEFT method: frozen skills by wrapper layers, training in place.

PEFT's ``inference_mode`` chooses. A frozen skill is a layer that computes ``W * mask`` on weights
that stay as they are, so several of them share one base. A connectome to train under is written
into the weights and guarded by hooks; nothing is wrapped and no state-dict key changes.

Importing this module, or ``from hf_connectome import ConnectomeConfig`` (or ``ConnectomeModel``,
``ConnectomeTuner``), registers the method with PEFT. Until then PEFT answers a connectome's
``adapter_config.json`` with ``KeyError: 'CONNECTOME'``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.peft_types import register_peft_method
from torch import nn

from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.bound import BoundConfig as BoundConfig  # from here, it is registered too
from hf_connectome.config import ConnectomeConfig, ConnectomePeftType
from hf_connectome.enforcement import MaskEnforcer, refuse_flat_shards
from hf_connectome.errors import (
    ConfigError,
    FormatError,
    HostMismatchError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
    some,
)
from hf_connectome.hosts import describe, refuse_offloaded, scope_fingerprint, wire
from hf_connectome.refusals import (
    configs_as_they_were,
    refuse_embeddings_saved,
    refuse_second,
    refuse_without_tuner,
)
from hf_connectome.scope import resolve
from hf_connectome.skills import ConnectomeLayer, put_skill
from hf_connectome.storage import check_digest
from hf_connectome.wirings import make_wiring, patterned

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import Connectome


# ---- the tuner -----------------------------------------------------------------------------------


class InPlace(nn.Module, BaseTunerLayer):
    """What PEFT's status reports find where a connectome is in place: nothing of it is a layer."""

    def __init__(self, adapter_name: str) -> None:
        """Stand for the one connectome that is in the weights."""
        super().__init__()
        self.merged_adapters = [adapter_name]
        self._active_adapter = [adapter_name]

    def _get_available_adapters(self) -> set[str]:
        return set(self.merged_adapters)

    def _move_adapter_to_device_of_base_layer(self, *_: Any, **__: Any) -> None:
        """Nothing to move: the mask is in the weights."""

    def __repr__(self) -> str:
        return "connectome.InPlace()"


class ConnectomeTuner(BaseTuner):
    """What PEFT puts around a model; which connectomes are on it is in their configs.

    A config without a connectome is drawn (its ``wiring``, ``density``, ``seed``) unless it records
    ``base_fingerprint``: then it came from a file whose tensors PEFT hands over next.

    transformers' own ``model.add_adapter`` makes a tuner and throws it away: frozen skills work
    there, because all that they need is in their layers and configs.
    """

    prefix = "connectome_"
    tuner_layer_cls = ConnectomeLayer

    enforcers: dict[str, MaskEnforcer]
    """Adapter name -> guard, of the one adapter that is in place, if any."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the connectome of ``peft_config[adapter_name]`` on ``model``."""
        if not isinstance(peft_config, PeftConfig):
            refuse_second(getattr(model, "peft_config", {}))
            super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)
            return
        with configs_as_they_were(model):
            refuse_second(getattr(model, "peft_config", {}))
            refuse_without_tuner(peft_config)
            with warnings.catch_warnings():  # several adapters are what add_adapter is for
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
                super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Guard the copy too: hooks do not follow a deep copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for enforcer in self.enforcers.values():
            enforcer.attach()

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        del model, config, adapter_name
        self.enforcers = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the named adapter on the model, or wait for its tensors."""
        del autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        config = self.peft_config[adapter_name]
        assert isinstance(config, ConnectomeConfig)
        refuse_second(self.peft_config if self.enforcers else {})
        if isinstance(config, BoundConfig):
            self._put(adapter_name, config)
        elif config.base_fingerprint is None:
            connectome = draw(model, config)
            assert connectome.config is not None
            mode = config.inference_mode
            bound = BoundConfig.of(connectome, connectome.config, inference_mode=mode)
            bound.first_reset, bound.first_magnitude = config.reset, config.magnitude
            self._put(adapter_name, bound)

    def connectome(self, adapter_name: str = "default") -> Connectome:
        """Return the connectome of an adapter.

        Raises:
            UnknownNameError: no such adapter.
            ConfigError: it was described by a config of a file, but the file was never read.
        """
        self._check_known([adapter_name])
        config = self.peft_config[adapter_name]
        if not isinstance(config, BoundConfig):
            raise ConfigError(
                f"the adapter {adapter_name!r} has the config of a stored connectome, but no masks "
                "were loaded. Use ConnectomeModel.from_pretrained(model, path); to draw a new "
                "connectome by this config, set its base_fingerprint to None."
            )
        return config.connectome

    def _put(self, adapter_name: str, config: BoundConfig) -> None:
        """Wrap or write in place; nothing has changed where this raises."""
        if config.inference_mode:
            put_skill(self.model, adapter_name, config.connectome)
        else:
            self._put_in_place(adapter_name, config)
        self.peft_config[adapter_name] = config
        if config.inference_mode:
            self.set_adapter(self.active_adapters, inference_mode=True)
            self._mark_only_adapters_as_trainable(self.model)

    def _put_in_place(self, adapter_name: str, config: BoundConfig) -> None:
        if any(isinstance(module, ConnectomeLayer) for module in self.model.modules()):
            raise UnsupportedError(
                "the model has frozen skills, and a connectome to train under would change the "
                "weights that they share. Call unload() or merge_and_unload() first."
            )
        refuse_flat_shards(self.model)
        refuse_offloaded(self.model)
        reset, magnitude = config.first_reset, config.first_magnitude
        wire(self.model, config.connectome, reset=reset, magnitude=magnitude)
        self.enforcers[adapter_name] = MaskEnforcer(self.model, config.connectome).attach()
        self.connectome_in_place = InPlace(adapter_name)

    def _refuse_in_place(self, what: str) -> None:
        if self.enforcers:
            raise UnsupportedError(
                f"{what} needs the dense weights, but the connectome {some(self.enforcers)} is in "
                "place and its dead weights are gone. merge_and_unload() gives the model as it is; "
                "ConnectomeModel.from_pretrained(model, path) loads a connectome that can be "
                "switched off."
            )

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise UnknownNameError(
                    f"unknown adapter {name!r}. {did_you_mean(name, self.peft_config)}"
                )

    # What PEFT's own entry points lead to.

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one connectome active, or several: then their intersection is."""
        self._check_known([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget a frozen skill; the last one leaves by ``unload()``."""
        self._check_known([adapter_name])
        self._refuse_in_place("deleting it")
        if len(self.peft_config) == 1:
            raise UnsupportedError(f"{adapter_name!r} is the last connectome. Call unload().")
        super().delete_adapter(adapter_name)
        self.set_adapter(self.active_adapter or next(iter(self.peft_config)), inference_mode=True)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Zero the dead weights until ``unmerge_adapter()``; in place they are 0 already."""
        self._check_known(adapter_names or ())
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the dense weights back, bit for bit."""
        self._refuse_in_place("unmerging")
        super().unmerge_adapter()  # type: ignore[no-untyped-call]

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse: masks have no weights to average."""
        raise UnsupportedError(
            "add_weighted_adapter averages weights, and a connectome has none. set_adapter([...]) "
            "makes several active, which leaves their intersection; for a connectome of its own, "
            "a & b or a | b of hf_connectome.Connectome."
        )

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        if not enabled:
            self._refuse_in_place("disabling it")
        super()._enable_adapter_layers(enabled)

    def _check_merge_allowed(self) -> None:
        """Nothing to warn of: a tied weight is masked once, for all who use it."""

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        self._check_known(adapter_names or ())
        if not merge:
            self.unmerge_adapter()
        if not self.enforcers:
            return super()._unload_and_optionally_merge(
                merge, progressbar, safe_merge, adapter_names
            )
        for enforcer in self.enforcers.values():
            enforcer.project()
            enforcer.detach()
        self.enforcers.clear()
        del self.connectome_in_place
        del self.model.peft_config
        return self.model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse, on the way into forward and generate, what would be silently wrong."""
        del args
        if kwargs.get("adapter_names") is not None:
            raise UnsupportedError(
                "adapter_names in one batch is not supported: all rows share the weights. Call "
                "set_adapter and the model once for each."
            )
        for name in self.active_adapters:
            self.connectome(name)
        yield

    def _create_and_replace(self, *_: Any, **__: Any) -> None:
        raise AssertionError("inject_adapter goes by parameter, not by module")

    # Tensors have the names of the file format, so that they mean the same everywhere.

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        del args, kwargs
        if not isinstance(model, PeftModel):
            # transformers writes what it is given here over the file that the config has written.
            refuse_embeddings_saved(model, config, adapter_name)
            return {}
        arrays = to_arrays(_tuner_of(model).connectome(adapter_name))
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        del adapter_name
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Take the tensors of a file that PEFT has read; nothing is left for it to load."""
        tuner, source = _tuner_of(model), Path(f"the state dict of {adapter_name!r}")
        assert isinstance(config, ConnectomeConfig)
        try:
            arrays = {name: tensor.cpu().numpy() for name, tensor in state_dict.items()}
        except TypeError as error:
            raise FormatError(f"{source} has a tensor of a foreign type: {error}.") from error
        connectome = from_arrays(arrays, tuner.model, config, file=source)
        if config.base_fingerprint not in (None, scope_fingerprint(connectome)):
            raise HostMismatchError(
                f"{source} was made for another base than its config records, or the host stores a "
                "matrix in the other orientation. Use a host of the recorded architecture "
                f"({config.architecture})."
            )
        check_digest(connectome, config, source)
        refuse_second(tuner.peft_config if tuner.enforcers else {})
        mode = config.inference_mode
        tuner._put(adapter_name, BoundConfig.of(connectome, config, inference_mode=mode))
        return {}


def draw(model: nn.Module, config: ConnectomeConfig) -> Connectome:
    """Draw the connectome that a config describes: wiring, scope, densities and seed.

    Raises:
        ScopeError: the scope or ``density_pattern`` names what the model does not have.
    """
    scope = resolve(model, config.target_modules or "all-matrices", config.exclude_modules)
    wiring = make_wiring(config.wiring)
    density = patterned(wiring, scope, config.density, config.density_pattern)
    drawn = wiring.build(scope, density, config.seed)
    return drawn.replace(config=describe(model, config, scope))


def _tuner_of(model: nn.Module) -> ConnectomeTuner:
    tuner = getattr(model, "base_model", None)
    assert isinstance(tuner, ConnectomeTuner)
    return tuner


def register() -> None:
    """Make the method known to PEFT; again does nothing."""
    tables: Any = mapping
    key = ConnectomePeftType.CONNECTOME
    if key in tables.PEFT_TYPE_TO_TUNER_MAPPING:
        return
    try:
        register_peft_method(
            name="connectome", config_cls=ConnectomeConfig, model_cls=ConnectomeTuner
        )
    except ValueError:  # PEFT's enum is closed, its tables are not
        tables.PEFT_TYPE_TO_CONFIG_MAPPING[key] = ConnectomeConfig
        tables.PEFT_TYPE_TO_TUNER_MAPPING[key] = ConnectomeTuner
        tables.PEFT_TYPE_TO_PREFIX_MAPPING[key] = ConnectomeTuner.prefix


register()
