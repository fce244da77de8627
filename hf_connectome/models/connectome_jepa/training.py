"""A Trainer that shows what each term of the loss does, and the size of what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zstandard
from transformers import Trainer

if TYPE_CHECKING:
    from torch import Tensor, nn

TERMS = ("cross_entropy", "jepa", "sigreg")


class TermsTrainer(Trainer):
    """Logs ``loss_cross_entropy``, ``loss_jepa`` and ``loss_sigreg`` beside their sum ``loss``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what transformers' Trainer takes."""
        super().__init__(*args, **options)
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as ever, and add up its terms in training."""
        kwargs = dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)) | kwargs
        wanted = kwargs.pop("return_outputs", False)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self._num_batches += 1
            factor = (loss / outputs["loss"]).detach()  # the Trainer's own, with several processes
            for name in TERMS:
                if name in outputs:
                    sum_so_far = self._sums.get(name, torch.zeros_like(factor))
                    self._sums[name] = sum_so_far + factor * outputs[name].detach()
        return (loss, outputs) if wanted else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the mean of each term over the same steps as the loss."""
        if "loss" in logs and self._num_batches:
            steps = self._num_batches / self.args.gradient_accumulation_steps
            means = {
                f"loss_{name}": float(self.accelerator.gather(total).mean()) / steps
                for name, total in self._sums.items()
            }
            logs = {**logs, **means}
            self._sums, self._num_batches = {}, 0
        super().log(logs, start_time)


def artefact_bytes(model: nn.Module) -> int:
    """Count the bytes of a model as int8 matrices, float16 for the rest, and packed masks, by zstd.

    A matrix has one float16 scale a row, its largest |w| / 127. Tied parameters count once. It is a
    size to compare models by: nothing here reads such a file.

    Source: openai/parameter-golf, whose limit is on such a file; there the compressor is zlib, and
    the weights without a synapse are stored too.
    """
    parts = []
    for tensor in (*model.parameters(), *model.buffers()):
        values = tensor.detach().cpu()
        if values.dtype == torch.bool:
            parts.append(np.packbits(values.numpy(), axis=-1).tobytes())
        elif values.ndim < 2 or not values.is_floating_point():
            whole = values.half() if values.is_floating_point() else values.short()
            parts.append(whole.numpy().tobytes())
        else:
            rows = values.float().flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            whole = (rows / scale).round().char()
            parts += [whole.numpy().tobytes(), scale.half().numpy().tobytes()]
    return len(zstandard.ZstdCompressor(level=19).compress(b"".join(parts)))
