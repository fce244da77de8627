"""Look for files that the reader does not refuse properly, led by the coverage of its code.

    pip install atheris
    PYTHONPATH=.:tests python tests/fuzz/coverage_guided.py -max_total_time=600 corpus/

``corpus/`` is an empty folder at first; sound and damaged files go into it, then what reached new
code. All options are libFuzzer's. What breaks a target is left as ``crash-*``; the same command
with that file as its only argument runs it again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run libFuzzer until it is stopped or something breaks."""
    import atheris

    with atheris.instrument_imports(include=["hf_connectome"]):
        from fuzz import mutants, targets

    folders = [Path(a) for a in sys.argv[1:] if not a.startswith("-") and Path(a).is_dir()]
    if folders and not any(folders[0].iterdir()):
        damaged = [bytes([0]) + mutants.mutant(number)[1] for number in range(800)]
        for number, start in enumerate([*targets.starts(), *damaged]):
            (folders[0] / f"{number:04}").write_bytes(start)

    def run(data: bytes) -> None:
        targets.run(data)

    atheris.Setup([*sys.argv, "-max_len=8192", "-rss_limit_mb=2048", "-timeout=10"], run)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
