"""What a criterion is: it scores weights. It neither ranks nor counts them (selection.py does)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hf_connectome.errors import ConfigError
from hf_connectome.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Statistics = Mapping[str, Mapping[str, "Tensor"]]
"""Name of a statistic -> name of a parameter -> its values."""

MOVEMENT = "movement"
STATISTICS = {
    "gradient": "gradient of the mean loss over all batches",
    "batch_gradient_squared": "square of the gradient of one batch, mean over batches",
    "example_gradient_squared": "square of the gradient of one example, mean over examples",
    "hessian_gradient": "Hessian of the mean loss times its gradient, both within the scope",
    "synaptic_flow": "gradient of the summed output of a network whose weights are all |w|",
    "feature_norm": "L2 norm of the weight's input over all positions of all batches",
    "correlation": "|correlation| of the weight's input and the output unit that it leads to",
    MOVEMENT: "-(gradient x weight), summed over the steps of a training",
}
"""What a criterion may ask for beside the weights; calibration.py says how each is measured."""


@dataclass(frozen=True)
class CriterionContext:
    """What a criterion may know beside the weights."""

    name: str
    """Name of the parameter being scored."""
    seed: int = 0
    """Seed of the run; a criterion that draws seeds its own generator with it and the name."""
    generation: int = 0
    """Generation whose survivors are being scored."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """What the criterion needs, by the names of STATISTICS."""

    def statistic(self, kind: str) -> Tensor:
        """Return one statistic of the parameter: float32, of the weight's full shape.

        Raises:
            ConfigError: nobody measured it.
        """
        if kind not in self.statistics:
            raise ConfigError(
                f"the criterion needs {kind!r} of {self.name!r}, and nobody measured it: "
                f"{STATISTICS.get(kind, 'no such statistic')}. GenerationalTrainer does; elsewhere "
                "pass statistics=hf_connectome.calibration.measure(model, connectome, batches, "
                f"[{kind!r}])."
            )
        return self.statistics[kind]


class Criterion(ABC):
    """Scores the weights of one parameter; survivors of highest score stay."""

    paper: ClassVar[str]
    """Where the criterion comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What it asks the context for, of STATISTICS; nothing else is measured."""
    by_weight: ClassVar[bool] = False
    """Whether a weight's score depends on that weight alone, so that rows may be scored apart."""

    @abstractmethod
    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Score every weight of one parameter.

        Args:
            weight: the parameter, full (some of its rows if ``by_weight``), any floating dtype.
            mask: bool, same shape, True = survivor; scores elsewhere are ignored.
            context: name, seed, generation, and the statistics that ``needs`` names.

        Returns:
            float, same shape, finite on survivors; higher = keep.
        """


criteria: Registry[Criterion] = Registry("criterion")
