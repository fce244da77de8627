"""Can a model be host to a connectome?"""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING

import torch

from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome
from hf_connectome.enforcement import MaskEnforcer
from hf_connectome.hosts import describe, extract, wire
from hf_connectome.scope import resolve
from hf_connectome.testing.common import expect
from hf_connectome.wirings import RandomWiring

if TYPE_CHECKING:
    from torch import nn


def check_host(model: nn.Module, *, scope: str = "all-matrices") -> None:
    """Check that a model can be host to a connectome.

    The scope is not empty; what is wired is what is read back; dead weights are exactly 0 after a
    step of AdamW with weight decay; a connectome of it is saved and read again. All of it happens
    on a copy of the model.

    Args:
        model: any module; nothing is run forward.
        scope: as in :func:`hf_connectome.scope.resolve`.

    Raises:
        AssertionError: says what is wrong with which parameter.
        ScopeError: the scope matches nothing.

    Example:
        >>> check_host(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
    """
    host = copy.deepcopy(model)
    scoped = resolve(host, scope)
    densities = {
        name: max(1, numel // 2) / numel
        for name, numel in ((n, torch.Size(p.shape).numel()) for n, p in scoped.items())
    }
    config = describe(host, ConnectomeConfig(target_modules=scope, density=0.5), scoped)
    drawn = RandomWiring().build(scoped, densities, 0).replace(config=config)
    wire(host, drawn, reset="sign_constant")
    found = extract(host, ConnectomeConfig(target_modules=scope))
    for name, entry in drawn.items():
        same = torch.equal(entry.sign(), found.sign(name))
        expect(same, f"{name!r} was wired and is read back with another mask or other signs.")
    _check_step(host, drawn)
    with tempfile.TemporaryDirectory() as folder:
        drawn.save_pretrained(folder)
        read = Connectome.from_pretrained(folder, host=model)
        expect(read == drawn, f"{drawn!r} was saved, {read!r} is read.")


def _check_step(host: nn.Module, connectome: Connectome) -> None:
    trained = [p for p in host.parameters() if p.requires_grad]
    expect(bool(trained), f"{type(host).__name__} has no parameter that is trained.")
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    enforcer = MaskEnforcer(host, connectome).attach(optimizer)
    before = [p.detach().clone() for p in trained]
    torch.stack([p.float().sin().sum() for p in trained]).sum().backward()
    optimizer.step()
    leaks = enforcer.num_leaks()
    expect(leaks == 0, f"{leaks} dead weights are not exactly 0 after a step of AdamW.")
    moved = any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    expect(moved, "a step of AdamW moved no weight at all.")
