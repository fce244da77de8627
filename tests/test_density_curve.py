"""The figure of loss over density: which arms make a line, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hf_connectome.analysis import density_curve as module
from hf_connectome.analysis.density_curve import density_curve, of_generation
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import ArmResult, summarise

if TYPE_CHECKING:
    from pathlib import Path


def run(arm: str, seed: int, loss: float, num_survivors: int) -> ArmResult:
    return ArmResult(arm, seed, [0, 10], [7.0, loss + seed / 100], num_survivors, 100, 50.0, 1.0)


def results(num_seeds: int = 2) -> list[ArmResult]:
    arms = [
        ("connectome", 4.0, 26),
        ("connectome@generation-1", 4.3, 80),
        ("connectome@generation-3", 4.1, 51),
        ("connectome:init_std", 4.2, 26),
        ("connectome@runs/other", 3.0, 64),
        ("dense", 4.5, 100),
    ]
    return [run(arm, seed, loss, num) for arm, loss, num in arms for seed in range(num_seeds)]


def test_a_line_joins_the_generations_of_one_arm_from_dense_to_sparse() -> None:
    lines = module._lines(summarise(results()))
    assert {name: [s.num_survivors for s in line] for name, line in lines.items()} == {
        "connectome": [80, 51, 26]
    }


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_figure_is_written_with_one_seed_and_with_several(tmp_path: Path, num_seeds: int) -> None:
    path = tmp_path / "new" / "densities.png"
    density_curve(summarise(results(num_seeds)), path, title="A run")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_comparison_without_other_generations_is_refused(tmp_path: Path) -> None:
    alone = [r for r in results() if not of_generation(r.arm)]
    with pytest.raises(ConfigError, match="of 4 arms none is there for more than one generation"):
        density_curve(summarise(alone), tmp_path / "densities.png")
