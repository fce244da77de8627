"""Is a connectome only a ternarised ancestor? One scale a tensor, learned before anything else.

The weights stay sign x constant; only their size is fitted to the child's own text. What the loss
is then, before the first real step, mask and signs say by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.arms.wired import used_bits
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import check_host, like, wire
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

NUM_STEPS = 60
BATCH_SIZE = 16
LEARNING_RATE = 0.05
"""Of the logarithm of a scale: enough to move it by a factor of 20 either way."""


@arms.register("learned-scale")
class LearnedScale(Arm):
    """Mask and signs, and one scale a tensor that is learned from the child's own text.

    Nothing more is inherited than mask and signs. The scales cost 60 batches of 16 blocks that the
    other arms do not see first; what the arm shows is its loss before step 1.
    """

    keeps = "mask and signs; one scale a tensor is learned from the child's own text"
    takes_reset = True
    takes_source = True
    needs_text = True

    def check(self, estate: Estate, name: str) -> None:
        """Refuse an estate without text to learn from."""
        super().check(estate, name)
        if not hasattr(estate.blocks, "__len__"):
            raise ConfigError(
                f"the arm {name!r} learns scales from blocks of text by number; the text here is "
                f"{type(estate.blocks).__name__}. Leave the arm out, or do not stream."
            )

    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Wire the host, then fit its scales."""
        connectome = estate.connectome
        wire(host, connectome, reset=estate.reset)
        parameters = {n: p for n, p in check_host(connectome, host).items() if n in connectome}
        scales = fit_scales(host, parameters, _batches(estate))
        with torch.no_grad():
            for name, parameter in parameters.items():
                value = parameter.detach().cpu() * scales[name].cpu()
                parameter.copy_(like(value, parameter))
        return Inherited(connectome, used_bits(connectome, estate.reset))


def fit_scales(
    host: nn.Module, parameters: dict[str, nn.Parameter], batches: Iterator[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the factor of each parameter that lowers the loss over the batches.

    Args:
        host: a model that gives ``loss``; it stays as it is.
        parameters: name -> parameter; the others stay at their values.
        batches: keyword arguments of the model, one after the other.

    Returns:
        Positive scalars by name.
    """
    logs = {name: torch.zeros((), requires_grad=True) for name in parameters}
    optimizer = torch.optim.Adam(logs.values(), lr=LEARNING_RATE)
    was_training = host.training
    host.eval()  # dropout would blur what the wiring says
    for batch in batches:
        sized = {n: p.detach() * logs[n].exp().to(p.device) for n, p in parameters.items()}
        loss: Any = functional_call(host, sized, kwargs=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    host.train(was_training)
    host.zero_grad()
    return {name: log.detach().exp() for name, log in logs.items()}


def _batches(estate: Estate) -> Iterator[dict[str, Tensor]]:
    blocks: Any = estate.blocks
    order = torch.randperm(len(blocks), generator=generator(estate.seed, "learned-scale")).tolist()
    for step in range(min(NUM_STEPS, len(order) // BATCH_SIZE or 1)):
        chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        yield collate([blocks[place] for place in chosen])
