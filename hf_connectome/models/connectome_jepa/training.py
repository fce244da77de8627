"""A Trainer that shows what each term of the loss does, and the size of what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zstandard
from transformers import Trainer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.models.connectome_jepa.modeling_connectome_jepa import (
        ConnectomeJepaForCausalLM,
    )

TERMS = ("cross_entropy", "jepa", "sigreg")


class TermsTrainer(Trainer):
    """Logs ``loss_cross_entropy``, ``loss_jepa`` and ``loss_sigreg`` beside their sum ``loss``.

    A model that has no such terms is trained as by transformers' Trainer.
    """

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
        terms = {name: outputs[name].detach() for name in TERMS if name in outputs}
        if model.training and terms:
            self._num_batches += 1
            # The Trainer multiplies the loss by the number of processes, in place.
            factor = loss.detach() / torch.stack(list(terms.values())).sum()
            for name, term in terms.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(term)) + factor * term
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


def num_alive(model: ConnectomeJepaForCausalLM) -> int:
    """Count the parameters, of the hops only those that are synapses.

    Example:
        >>> from hf_connectome.graphs import NeuronGraph
        >>> from hf_connectome.models import ConnectomeJepaForCausalLM
        >>> graph = NeuronGraph.from_edges("ab", [("a", "b")], inputs="a", outputs="b")
        >>> model = ConnectomeJepaForCausalLM.from_graph(graph, num_hops=2, hidden_size=8)
        >>> model.num_parameters() - num_alive(model)
        6
    """
    dead = int((~model.model.mask).sum())
    return int(model.num_parameters()) - dead * model.config.num_hops
