"""What every worker does on its rank: gathers, writes what was found, and leaves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed


def on_every_rank(value: Any) -> list[Any]:
    """Return the values of all ranks."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def run(main: Callable[[Path], Any]) -> NoReturn:
    """Run ``main`` with the folder that the command names, and write there what it returns."""
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    results = main(output)
    if distributed.get_rank() == 0:
        (output / "results.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()
    # gloo's threads now and then abort the interpreter's shutdown, long after the results are safe.
    sys.stdout.flush()
    os._exit(0)
