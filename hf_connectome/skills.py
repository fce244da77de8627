"""Frozen skills: layers that leave dead weights out of a model whose own weights stay as they are.

Which connectome is on which model is the tuner's business (adapter.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from hf_connectome.errors import ConfigError, UnsupportedError, some
from hf_connectome.hosts import check_host, refuse_offloaded
from hf_connectome.scope import RAW

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import Connectome

Place = tuple[nn.Module, str]
"""A module and the name of the child in it that uses a parameter."""


class ConnectomeLayer(nn.Module, BaseTunerLayer):
    """Runs a module with dead weights left out; its own weights stay as they are.

    Each active connectome that covers the weight takes part: what is left is their intersection.
    Masks are bool buffers that no state dict holds, because the file of a connectome is packed and
    buffers in a state dict break FSDP2 loading. Modules with a tied weight share their masks.

    Every forward pass multiplies. Where speed counts, ``merge_adapter()`` multiplies once and keeps
    a dense copy of each covered weight, which ``unmerge_adapter()`` puts back bit for bit.
    """

    other_param_names = ("connectome_masks",)
    connectome_masks: Any
    """BufferDict, adapter name -> mask of the weight."""
    connectome_dense: Any
    """BufferDict, empty, or 'weight' -> the dense weight while a mask is merged into it."""

    def __init__(self, base_layer: nn.Module, masks: BufferDict, dense: BufferDict) -> None:
        """Wrap ``base_layer``; layers with a tied weight are given the same two dicts."""
        super().__init__()
        self.base_layer = base_layer
        self.connectome_masks = masks
        self.connectome_dense = dense
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.training = base_layer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module with its masked weight."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = self._covering(self.active_adapters)
        if self.disable_adapters or self.merged or not names:
            return self.base_layer(*args, **kwargs)
        # Negative dead weights become -0.0, which no sum tells from 0.0; `where` costs twice this.
        weight = self.weight * self._mask(names)
        return functional_call(self.base_layer, {"weight": weight}, args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Zero the dead weights of the named (or active) connectomes, keeping a dense copy."""
        del safe_merge  # a mask cannot make a NaN
        named = self.active_adapters if adapter_names is None else adapter_names
        names = [name for name in self._covering(named) if name not in self.merged_adapters]
        if not names:
            return
        weight = self.weight
        if "weight" not in self.connectome_dense:
            self.connectome_dense["weight"] = weight.detach().clone()
        with torch.no_grad():
            weight.masked_fill_(~self._mask(names), 0.0)
        self.merged_adapters = [*self.merged_adapters, *names]

    def unmerge(self) -> None:
        """Put the dense weights back."""
        if "weight" in self.connectome_dense:
            with torch.no_grad():
                self.weight.copy_(self.connectome_dense.pop("weight"))
        self.merged_adapters = []

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the entries below; without a mask left, under the names of the bare module.

        transformers' ``delete_adapter`` leaves layers behind, and saves the model as a plain one.
        """
        if self.connectome_masks:
            return super().state_dict(*args, **kwargs)
        return self.base_layer.state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not self.connectome_masks:
            inner = f"{prefix}base_layer."
            for key in [k for k in state_dict if k.startswith(prefix)]:
                if not key.startswith(inner):  # saved while there was a mask
                    state_dict[inner + key[len(prefix) :]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _get_available_adapters(self) -> set[str]:
        return set(self.connectome_masks.keys())

    def _covering(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.connectome_masks]

    def _mask(self, names: Sequence[str]) -> Tensor:
        mask: Tensor = self.connectome_masks[names[0]]
        for name in names[1:]:
            mask = mask & self.connectome_masks[name]
        return mask

    def __repr__(self) -> str:
        return f"connectome.{super().__repr__()}"


class Linear(ConnectomeLayer):
    """A :class:`ConnectomeLayer` on a Linear or Conv1D; PEFT's 'all-linear' goes by the name."""


def put_skill(model: nn.Module, adapter_name: str, connectome: Connectome) -> None:
    """Wrap every module whose weight the connectome covers, and give the layers its masks.

    Args:
        model: the base; a module that is wrapped already gets the mask beside those it has.
        adapter_name: what the masks are called.
        connectome: of Linear, Conv1D, Embedding or convolution weights.

    Raises:
        HostMismatchError: the model does not fit; nothing was changed.
        UnsupportedError: a parameter is no module's ``weight``, or is not in memory; nothing was
            changed.
        ConfigError: the name cannot name a buffer; nothing was changed.
    """
    _check_name(adapter_name)
    places = _places(model, connectome)
    refuse_offloaded(model)
    for module in model.modules():
        if isinstance(module, ConnectomeLayer) and adapter_name in module.connectome_masks:
            del module.connectome_masks[adapter_name]  # it is loaded anew
    for name, entry in connectome.items():
        layer = _wrap(places[name])
        layer.connectome_masks[adapter_name] = entry.mask().to(layer.weight.device)


def _places(model: nn.Module, connectome: Connectome) -> dict[str, list[Place]]:
    """Find every module that uses a parameter in scope; a tied one has several."""
    names = {id(p): name for name, p in check_host(connectome, model).items()}
    raw = {name for name, entry in connectome.items() if entry.orientation == RAW}
    places: dict[str, list[Place]] = defaultdict(list)
    for parent, child_name, base in _children(model):
        for leaf, parameter in base._parameters.items():
            name = names.get(id(parameter))
            if name is not None:
                places[name].append((parent, child_name))
                if leaf != "weight":
                    raw.add(name)
    raw |= connectome.keys() - places.keys()
    refused = [*sorted(raw), *connectome.values_carried]
    if refused:
        raise UnsupportedError(
            f"{some(refused)} cannot be wrapped: a frozen skill masks the weights of Linear, "
            "Conv1D, Embedding and convolution modules, not raw parameters (such as fused experts) "
            "nor values that travel whole. Put the connectome in place: is_trainable=True in "
            "from_pretrained, or inference_mode=False in the config."
        )
    return places


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Give each parent, the name of a child, and the child as it is without our layer."""
    for parent in model.modules():
        if isinstance(parent, ConnectomeLayer):
            continue
        for child_name, child in parent._modules.items():
            if child is not None:
                bare = child.base_layer if isinstance(child, ConnectomeLayer) else child
                yield parent, child_name, bare


def _wrap(places: Sequence[Place]) -> ConnectomeLayer:
    """Put layers that share their masks at ``places``; return one of them."""
    children = [parent._modules[child_name] for parent, child_name in places]
    layers = {id(child): child for child in children if isinstance(child, ConnectomeLayer)}
    first = next(iter(layers.values()), None)
    masks = BufferDict(persistent=False) if first is None else first.connectome_masks
    dense = BufferDict(persistent=False) if first is None else first.connectome_dense
    for (parent, child_name), child in zip(places, children, strict=True):
        assert child is not None
        if id(child) not in layers:
            kind = Linear if isinstance(child, (nn.Linear, Conv1D)) else ConnectomeLayer
            layers[id(child)] = kind(child, masks, dense)
        setattr(parent, child_name, layers[id(child)])
    return next(iter(layers.values()))


def _check_name(adapter_name: str) -> None:
    try:
        BufferDict({adapter_name: torch.empty(0)})
    except KeyError as error:
        raise ConfigError(
            f"{adapter_name!r} cannot name an adapter: {error}. Use letters and digits."
        ) from error
