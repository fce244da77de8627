"""Links between what goes together in the data: the strongest correlations of input features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError, HostMismatchError, some
from hf_connectome.selection import keep
from hf_connectome.wirings.base import ParameterWiring, wirings
from hf_connectome.wirings.random import RandomWiring

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import Connectome
    from hf_connectome.scope import ScopedParameter


@wirings.register("csti")
@dataclass(frozen=True, eq=False)
class CstiWiring(ParameterWiring):
    """Correlated sparse topological initialisation.

    Output o of a matrix stands for input feature o modulo their number, and the links are its
    strongest absolute correlations, over the whole matrix. Parameters without features are drawn
    by lot.

    Source:
        Zhang et al. 2024, Epitopological learning and Cannistraci-Hebb network shape intelligence
        brain-inspired theory for ultra-sparse advantage in deep learning (CSTI).

    Args:
        features: parameter name -> ``(samples, inputs)`` floats, what goes into that matrix.
    """

    features: Mapping[str, Tensor] | None = None

    paper = "Zhang et al. 2024, Epitopological learning and Cannistraci-Hebb network shape ..."
    citation = "openreview:iayEcORsGd"
    needs_data = True

    def build(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float], seed: int
    ) -> Connectome:
        """Draw each parameter; see :class:`~hf_connectome.wirings.Wiring`.

        Raises:
            ConfigError: there are no features.
            HostMismatchError: features of a parameter that is not in scope, or of another size.
        """
        if not self.features:
            raise ConfigError(
                "the wiring 'csti' correlates input features and was given none. Make it in "
                "Python: CstiWiring(features={'name of a parameter': tensor of (samples, inputs)})."
            )
        if unknown := [name for name in self.features if name not in scope]:
            raise HostMismatchError(
                f"there are features for {some(unknown)}, which is not in scope; it has "
                f"{some(scope)}. Name parameters in scope."
            )
        for name, features in self.features.items():
            inputs = scope[name].matrix_shape[2]
            if features.ndim != 2 or features.shape[1] != inputs or len(features) < 2:
                raise HostMismatchError(
                    f"the features of {name!r} are {tuple(features.shape)}; expected (samples, "
                    f"{inputs}) with at least 2 samples. Give what goes into that matrix."
                )
        return super().build(scope, density, seed)

    def mask(self, parameter: ScopedParameter, num_survivors: int, draw: torch.Generator) -> Tensor:
        """Keep the strongest correlations."""
        features = (self.features or {}).get(parameter.name)
        if features is None:
            return RandomWiring().mask(parameter, num_survivors, draw)
        number, outputs, inputs = parameter.matrix_shape
        strength = correlations(features).abs()
        rows = strength[torch.arange(outputs) % inputs]
        score = parameter.from_matrices(rows.expand(number, outputs, inputs))
        everything = torch.ones(parameter.shape, dtype=torch.bool)
        return keep(score, everything, everything.numel() - num_survivors, name=parameter.name)


def correlations(features: Tensor) -> Tensor:
    """Return Pearson's correlations ``(inputs, inputs)``; 0 with a feature that is constant."""
    centred = features.double() - features.double().mean(0)
    norm = centred.norm(dim=0)
    scaled = torch.where(norm > 1e-12, centred / norm.clamp(min=1e-12), 0.0)
    return scaled.T @ scaled
