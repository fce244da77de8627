"""The larva of Drosophila: 2,952 neurons, from files that the user has."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from hf_connectome.errors import DataError
from hf_connectome.graphs.files import read_graph

if TYPE_CHECKING:
    from os import PathLike

    from hf_connectome.graphs.base import NeuronGraph

SENSORY_TYPES = frozenset({"sensory"})
OUTPUT_TYPES = frozenset({"DN-VNC", "DN-SEZ", "RGN"})
"""Neurons that leave the brain for nerve cord and SEZ, and those of the ring gland."""
_SIDES = ("left_id", "right_id")


def larva_graph(synapses: str | PathLike[str], annotations: str | PathLike[str]) -> NeuronGraph:
    """Read the brain of the larva, with its sensory neurons as inputs.

    Args:
        synapses: ``.npz`` of ``ids``, ``src``, ``dst`` and ``all_all``, or the matrix as ``.csv``
            (``all-all_connectivity_matrix.csv``); rows are presynaptic.
        annotations: ``.csv`` with ``left_id``, ``right_id`` and ``celltype``.

    Raises:
        DataError: a file cannot be read, or its annotations have none of the cell types.

    Source: Winding et al. 2023, The connectome of an insect brain (doi:10.1126/science.add9330),
    supplementary data S1. The paper's text was not read.
    """
    path = Path(annotations)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if not rows or not {*_SIDES, "celltype"} <= rows[0].keys():
        raise DataError(
            f"{path} lacks the columns left_id, right_id and celltype; expected the annotations of "
            "the larva's connectome."
        )
    types = {row[side]: row["celltype"] for row in rows for side in _SIDES}
    return read_graph(
        synapses,
        inputs=[name for name, kind in types.items() if kind in SENSORY_TYPES],
        outputs=[name for name, kind in types.items() if kind in OUTPUT_TYPES],
    )
