"""Start a stand-in by hand, to try pushing and pulling without the Hub.

    PYTHONPATH=tests python -m hub --port 8000 --user alice --organisation org=alice
    export HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=hf_alice HF_HOME=$(mktemp -d)
    hf upload org/my-connectome runs/cpu/generation-6

It prints its address, then one line a request, and forgets everything when it ends. The token of a
user is ``hf_`` and the name. Without ``--xet_store`` clients must have HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from hub.server import Hub


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hub", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="by default a free one")
    parser.add_argument("--user", action="append", help="may be given again; by default alice")
    parser.add_argument(
        "--organisation",
        action="append",
        default=[],
        metavar="NAME=USER[,USER…]",
        help="a namespace and who may write there",
    )
    parser.add_argument("--xet_store", type=Path, help="folder for files that come by Xet")
    parser.add_argument("--quiet", action="store_true", help="print the address alone")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    named = (entry.split("=", 1) for entry in options.organisation)
    hub = Hub(
        {f"hf_{user}": user for user in options.user or ["alice"]},
        {name: users.split(",") for name, users in named},
        xet_store=options.xet_store and options.xet_store.absolute(),
        port=options.port,
        report=None if options.quiet else say,
    )
    with hub:
        say(hub.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
