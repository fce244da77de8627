"""One real training step of a fresh model: does its connectome load, learn, stay sparse?"""

import inspect
import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

_MOST_TOKENS = 32
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Trial:
    """What one step gave."""

    model: str
    num_parameters: int
    num_trainable: int
    loss: float
    num_dead: int
    num_leaks: int
    """Dead weights that were not exactly 0 after the step."""
    num_changed: int
    """Survivors that the step moved."""
    build_seconds: float
    step_seconds: float
    peak_bytes: int | None
    """Of the whole process, torch and transformers included; None where it cannot be asked."""

    @property
    def reasons(self) -> list[str]:
        """What is wrong; empty if nothing is."""
        found = []
        if not math.isfinite(self.loss):
            found.append(f"the loss is {self.loss}; expected a finite number")
        if self.num_leaks:
            found.append(
                f"{self.num_leaks} of {self.num_dead} dead weights are not 0; expected none"
            )
        if not self.num_changed:
            found.append("the step moved no survivor; expected it to learn")
        return found

    def document(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {"passed": not self.reasons, "reasons": self.reasons, **asdict(self)}


def try_out(folder: "Path", *, seed: int = 0) -> Trial:
    """Build the fresh model of a connectome, take one AdamW step on random input, and look.

    Raises:
        UnsupportedError: the model takes neither tokens nor pixels.
    """
    import torch

    from hf_connectome.enforcement import MaskEnforcer
    from hf_connectome.modeling import ConnectomeModel

    start = time.perf_counter()
    wrapped = ConnectomeModel.from_pretrained(folder, seed=seed)
    connectome, model = wrapped.connectome, wrapped.get_base_model().train()
    built = time.perf_counter()
    draw = torch.Generator().manual_seed(seed)
    inputs = _random_inputs(model, draw)
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in connectome}
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    enforcer = MaskEnforcer(model, connectome).attach(optimizer)
    loss = _loss(model(**inputs)[0], draw)
    loss.backward()
    optimizer.step()
    stepped = time.perf_counter()
    trainable, total = wrapped.get_nb_trainable_parameters()
    return Trial(
        model=type(model).__name__,
        num_parameters=total,
        num_trainable=trainable,
        loss=loss.item(),
        num_dead=connectome.num_weights - connectome.num_survivors,
        num_leaks=enforcer.num_leaks(),
        num_changed=sum(int((parameters[name] != was).sum()) for name, was in before.items()),
        build_seconds=built - start,
        step_seconds=stepped - built,
        peak_bytes=_peak_bytes(),
    )


def _random_inputs(model: "nn.Module", draw: Any) -> dict[str, "Tensor"]:
    import torch

    config: Any = model.config
    accepted = inspect.signature(model.forward).parameters
    if "input_ids" in accepted:
        num_tokens = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        positions = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS
        # Two are left free: some models (RoBERTa) count positions from an offset.
        length = max(1, min(_MOST_TOKENS, positions - 2))
        ids = torch.randint(num_tokens, (2, length), generator=draw)
        decoder = {"decoder_input_ids": ids} if "decoder_input_ids" in accepted else {}
        return {"input_ids": ids, **decoder}
    if "pixel_values" in accepted:
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        shape = (2, config.num_channels, height, width)
        return {"pixel_values": torch.randn(shape, generator=draw)}
    raise UnsupportedError(
        f"{type(model).__name__} takes {', '.join(list(accepted)[:3])}; load-test knows models of "
        "tokens (input_ids) and of pixels (pixel_values). Build it by "
        "ConnectomeModel.from_pretrained and run a step of your own."
    )


def _loss(output: "Tensor", draw: Any) -> "Tensor":
    """Return the cross entropy to random classes, of logits or of a headless model's states."""
    import torch

    flat = output.float().reshape(-1, output.shape[-1])
    classes = torch.randint(flat.shape[-1], (flat.shape[0],), generator=draw)
    return torch.nn.functional.cross_entropy(flat, classes)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
