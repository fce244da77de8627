"""One of two processes that add different rows to the same metrics; the first gets the numbers."""

from __future__ import annotations

import json
import sys

from hf_connectome.evaluation.metrics import load


def gather(rank: int, cache: str) -> list[dict[str, float] | None]:
    options = {"num_process": 2, "process_id": rank, "experiment_id": "both", "cache_dir": cache}
    bits = load("bits_per_byte", timeout=300, **options)
    bits.add_batch(predictions=[[1.0, 2.0], [4.0]][rank], references=[[1, 2], [3]][rank])
    found = [bits.compute()]
    times = load("reading_time_correlation", timeout=300, **options)
    times.add_batch(
        predictions=[[1.0, 2.0], [4.0, 3.0]][rank],
        references=[[2.0, 1.0], [4.0, 5.0]][rank],
        controls=[[[1.0], [0.0]], [[0.0], [2.0]]][rank],
    )
    return [*found, times.compute()]


if __name__ == "__main__":
    print(json.dumps(gather(1, sys.argv[1])))
