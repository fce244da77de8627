"""Points the real client to a stand-in: in this process, or in one that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from hub.server import Hub

ROOT = Path(__file__).parents[2]


class Clock:
    """The ``time`` module for the client's retries: a pause is noted, not waited for."""

    def __init__(self, pauses: list[float]) -> None:
        self.sleep = pauses.append

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Client:
    """huggingface_hub in this process, with a home of its own; undone when the test ends.

    The library reads its settings when it is imported, which here was long ago and offline. It
    looks each of them up in ``huggingface_hub.constants`` when it is used, so that is where they
    are changed.
    """

    def __init__(self, hub: Hub, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.hub, self.home, self._patch = hub, home, patch
        self.pauses: list[float] = []
        """Seconds that the client would have waited before it tried again."""
        self._environment: dict[str, str | None] = {}
        self._point()

    def _point(self) -> None:
        from huggingface_hub import file_download, hf_api
        from huggingface_hub.utils import _http

        self._set("ENDPOINT", self.hub.url, "HF_ENDPOINT")
        template = self.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        self._set("HUGGINGFACE_CO_URL_TEMPLATE", template)
        self._set("HF_HOME", str(self.home), "HF_HOME")
        self._set("HF_HUB_CACHE", str(self.home / "hub"), "HF_HUB_CACHE")
        self._set("HF_XET_CACHE", str(self.home / "xet"), "HF_XET_CACHE")
        self._set("HF_TOKEN_PATH", str(self.home / "token"), "HF_TOKEN_PATH")
        self._set("HF_STORED_TOKENS_PATH", str(self.home / "stored_tokens"))
        # The functions of the package are methods of one object, which keeps the endpoint, and
        # transformers makes one for itself at the first use.
        self._patch.setattr(hf_api.api, "endpoint", self.hub.url)
        self._patch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        for module in (_http, file_download):
            self._patch.setattr(module, "time", Clock(self.pauses))
        self.use_xet(False)
        self.go_offline(False)
        self.log_in(None)

    def log_in(self, token: str | None) -> None:
        """Be the user of a token, or a visitor."""
        self._export("HF_TOKEN", token)

    def go_offline(self, offline: bool = True) -> None:
        """Set HF_HUB_OFFLINE."""
        self._set("HF_HUB_OFFLINE", offline)
        self._export("HF_HUB_OFFLINE", "1" if offline else None)

    def use_xet(self, wanted: bool = True) -> None:
        """Send large files by Xet, the default outside tests, or by LFS."""
        self._set("HF_HUB_DISABLE_XET", not wanted)
        self._export("HF_HUB_DISABLE_XET", None if wanted else "1")

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program under the same settings, and return what it printed."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def python(self, program: str, *arguments: str | Path) -> str:
        """Run a program in another Python, and return what it printed."""
        return self.run(sys.executable, "-c", program, *arguments).stdout

    def _set(self, constant: str, value: object, variable: str | None = None) -> None:
        self._patch.setattr(f"huggingface_hub.constants.{constant}", value)
        if variable is not None:
            self._export(variable, str(value))

    def _export(self, variable: str, value: str | None) -> None:
        if value is None:
            self._patch.delenv(variable, raising=False)
        else:
            self._patch.setenv(variable, value)


def hf(*arguments: str | Path) -> Sequence[str | Path]:
    """Return the command line of ``hf``, of the same environment as this Python."""
    return [Path(sys.executable).with_name("hf"), *arguments]


def steps(log: Sequence[tuple[str, str, int, str | None]], method: str) -> list[str]:
    """Return the targets that were asked for by one method."""
    return [target for asked, target, *_ in log if asked == method]
