"""AdamW with moments for the survivors alone: the same weights in a fraction of the memory.

The arithmetic is torch's own, on packed tensors. Under a MaskEnforcer a dead weight has gradient
and weight 0, so its moments stay 0 and need not be kept.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import AdamW
from torch.optim.adamw import adamw

from hf_connectome.errors import (
    ConfigError,
    RunError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
)
from hf_connectome.optimizers.places import Places, packed_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from transformers import TrainingArguments

    from hf_connectome.connectome import Connectome, SignedMask
    from hf_connectome.enforcement import MaskEnforcer

OPTIMIZER_STATES = {
    "dense": "two moments for every weight, dead or alive",
    "survivors": "two moments and one byte for every survivor; AdamW under DDP or on one device",
}
STATE_HELP = f"{'; '.join(': '.join(item) for item in OPTIMIZER_STATES.items())}."

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_MASK = "mask"


class SurvivorAdamW(AdamW):
    """torch's AdamW whose moments are packed: one value a survivor of each masked parameter.

    It learns the masks from the enforcer that is attached to it and follows them: where the
    connectome changes, links that stay keep their moments and new ones start at 0. Parameters out
    of scope, and those without a dead weight, have ordinary state.

    Example:
        >>> import torch
        >>> from hf_connectome import Connectome, MaskEnforcer, SignedMask
        >>> layer = torch.nn.Linear(8, 8, bias=False)
        >>> entry = SignedMask.pack(torch.eye(8, dtype=torch.bool), orientation="out_in")
        >>> optimizer = SurvivorAdamW(layer.parameters(), lr=0.1)
        >>> _ = MaskEnforcer(layer, Connectome({"weight": entry})).attach(optimizer)
        >>> layer(torch.ones(1, 8)).sum().backward()
        >>> _ = optimizer.step()
        >>> optimizer.state[layer.weight]["exp_avg"].shape
        torch.Size([8])
    """

    _enforcer: MaskEnforcer | None = None
    _connectome: Connectome | None = None

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any) -> None:
        """Take what torch's AdamW takes.

        Args:
            params: parameters or groups of them.
            lr: learning rate.
            **options: ``betas``, ``eps``, ``weight_decay``, ``amsgrad``, ``maximize``, ``foreach``
                and ``fused``.

        Raises:
            UnsupportedError: ``capturable`` or ``differentiable``.
        """
        for name in ("capturable", "differentiable"):
            if options.get(name):
                raise UnsupportedError(
                    f"SurvivorAdamW cannot be {name}. Use torch.optim.AdamW, or leave {name} out."
                )
        super().__init__(params, lr, **options)
        # A GradScaler then unscales the gradients itself, and skips a step that overflowed.
        self._step_supports_amp_scaling = False
        self._entries: dict[Tensor, SignedMask] = {}
        self.packed: dict[Tensor, Places] = {}
        """The parameters whose state is packed. Their dead weights are never written to, so
        MaskEnforcer does not project them after a step."""

    @property
    def num_state_bytes(self) -> int:
        """Bytes of the state: moments, step counts and places."""
        tensors = (v for s in self.state.values() for v in s.values() if torch.is_tensor(v))
        places = sum(place.num_bytes for place in self.packed.values())
        return sum(tensor.nbytes for tensor in tensors) + places

    def follow(self, enforcer: MaskEnforcer) -> None:
        """Take the masks from an enforcer, now and whenever it changes them.

        ``MaskEnforcer.attach`` calls it. State that is there already is packed by the new masks.

        Raises:
            UnsupportedError: the model is sharded.
            RunError: the state was saved under other masks.
        """
        self._enforcer, self._connectome = enforcer, None
        self._repack()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step of AdamW on the survivors, and on the parameters out of scope.

        Args:
            closure: as in torch's optimizers.

        Raises:
            ConfigError: no MaskEnforcer is attached.
            UnsupportedError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._repack()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            states = {p: self._state_of(p, group) for p in trained}
            whole = [p for p in trained if p not in self.packed]
            _adamw(group, whole, [p.grad for p in whole], [states[p] for p in whole])
            for p in trained:
                if p in self.packed:
                    _step_survivors(group, p, states[p], self.packed[p])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with moments packed as they are, and which mask they are packed by."""
        if self._enforcer is not None:
            self._repack()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of the same masks, or one of torch's AdamW, which is packed.

        A state of other masks is refused at the next step.
        """
        super().load_state_dict(state_dict)
        self._connectome = None

    def _state_of(self, p: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise UnsupportedError(
                f"the gradient of a parameter of shape {tuple(p.shape)} is sparse, which AdamW "
                "cannot use. Use an embedding with sparse=False."
            )
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device if group["fused"] else "cpu")
            count = None if p not in self.packed else self.packed[p].num_survivors
            for name in _MOMENTS[: 3 if group["amsgrad"] else 2]:
                state[name] = torch.zeros_like(p) if count is None else p.new_zeros(count)
            if count is not None:
                state[_MASK] = _digest(self._entries[p])
        return state

    @torch.no_grad()
    def _repack(self) -> None:
        """Do nothing unless the masks changed; else carry the state of the links that stay."""
        if self._enforcer is None:
            raise ConfigError(
                "SurvivorAdamW has no masks. Attach it: MaskEnforcer(model, connectome)"
                ".attach(optimizer), or use torch.optim.AdamW."
            )
        connectome = self._enforcer.connectome
        if connectome is self._connectome:
            return
        held = {p for group in self.param_groups for p in group["params"]}
        packed = packed_entries(connectome, self._enforcer.model)
        entries: dict[Tensor, SignedMask] = {p: entry for p, entry in packed if p in held}
        for p, state in self.state.items():
            _carry(state, p, self._entries.get(p), entries.get(p))
        self._entries, self._connectome = entries, connectome
        self.packed = {p: Places(entry, p.device) for p, entry in entries.items()}


def check_optimizer_state(state: str, arguments: TrainingArguments | None = None) -> None:
    """Refuse a state that does not exist, or that a training cannot have.

    Args:
        state: of OPTIMIZER_STATES.
        arguments: of the training, if they are known.

    Raises:
        UnknownNameError: there is no such state.
        ConfigError: the arguments ask for another optimizer than torch's AdamW.
        UnsupportedError: they ask for FSDP.
    """
    if state not in OPTIMIZER_STATES:
        raise UnknownNameError(
            f"unknown optimizer_state {state!r}. {did_you_mean(state, OPTIMIZER_STATES)}"
        )
    if state == "dense" or arguments is None:
        return
    name = str(getattr(arguments.optim, "value", arguments.optim))
    if name not in ("adamw_torch", "adamw_torch_fused"):
        raise ConfigError(
            f"optimizer_state is 'survivors' and optim {name!r}; only AdamW keeps its state for "
            "survivors. Use optim='adamw_torch' or 'adamw_torch_fused', or leave optimizer_state "
            "out."
        )
    if arguments.fsdp:
        raise UnsupportedError(
            "optimizer_state='survivors' keeps state for whole parameters, of which FSDP leaves "
            "each rank a shard. Use DDP, or leave optimizer_state out."
        )


def optimizer_of(
    arguments: TrainingArguments, state: str, wiring: Connectome | None
) -> tuple[type[SurvivorAdamW], dict[str, Any]] | None:
    """Return what transformers' Trainer takes as ``optimizer_cls_and_kwargs``.

    Args:
        arguments: say which optimizer, and how it is set.
        state: of OPTIMIZER_STATES.
        wiring: what the model trains under; None: all its weights, so there is nothing to pack.

    Returns:
        None where the Trainer's own optimizer is right.

    Raises:
        UnknownNameError: as in :func:`check_optimizer_state`.
        ConfigError: likewise.
        UnsupportedError: likewise.
    """
    from transformers import Trainer

    if wiring is None or state == "dense":
        return None
    check_optimizer_state(state, arguments)
    _, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return SurvivorAdamW, options


def _step_survivors(
    group: Mapping[str, Any], p: Tensor, state: dict[str, Any], places: Places
) -> None:
    assert p.grad is not None
    weights, gradients = p.view(-1), p.grad.reshape(-1)
    for chunk in places.chunks:
        index = chunk.index()
        some = weights[chunk.start :].index_select(0, index)
        gradient = gradients[chunk.start :].index_select(0, index)
        parts = {name: state[name][chunk.part] for name in _MOMENTS if name in state}
        # Every chunk counts the same step.
        _adamw(group, [some], [gradient], [parts | {"step": state["step"].clone()}])
        weights[chunk.start :].scatter_(0, index, some)
    state["step"] += 1


def _adamw(
    group: Mapping[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
) -> None:
    """Run torch's AdamW, by the kernel that the group asks for, on tensors of any shape."""
    exp_avg, exp_avg_sq, most = ([s[name] for s in states if name in s] for name in _MOMENTS)
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        most,
        [state["step"] for state in states],
        foreach=group["foreach"],
        fused=group["fused"],
        has_complex=any(map(torch.is_complex, parameters)),
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _carry(
    state: dict[str, Any], p: Tensor, old: SignedMask | None, new: SignedMask | None
) -> None:
    """Bring a parameter's state from one mask to another; None means all of its weights."""
    wanted = None if new is None else _digest(new)
    if not state or state.get(_MASK) == wanted:
        return
    if _MASK in state and (old is None or state[_MASK] != _digest(old)):
        raise RunError(
            f"the optimizer's state of a parameter of shape {tuple(p.shape)} was saved under "
            "another mask than the connectome has. Load the connectome of the same checkpoint "
            "before it."
        )
    for name in [name for name in _MOMENTS if name in state]:
        moment = state[name]
        if _MASK in state:
            assert old is not None
            moment = torch.zeros_like(p).masked_scatter_(old.mask().to(p.device), moment)
        state[name] = moment if new is None else moment[new.mask().to(p.device)]
    state.pop(_MASK, None)
    if wanted is not None:
        state[_MASK] = wanted


def _digest(entry: SignedMask) -> int:
    """Return a number that tells masks apart; torch's load_state_dict would take text to pieces."""
    return int.from_bytes(hashlib.sha256(entry.mask_bits.tobytes()).digest()[:7], "big")
