"""Pushes generations in the background, beside the training that makes them.

What one push consists of is publishing.py's.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

from hf_connectome import hub
from hf_connectome.errors import HubError, some
from hf_connectome.publishing import is_published, publish_one, refuse_other_kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)


class GenerationPublisher:
    """Pushes generations in the order that they are given, beside the training that makes them.

    A push that fails is tried again with the next one and at the end; training goes on meanwhile.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
    ) -> None:
        """Create the repository, so that a wrong name or token shows before any training.

        Raises:
            HubError: the Hub refused.
        """
        self.repo_id = hub.create_repository(repo_id, private=private, token=token)
        self._options: dict[str, Any] = {"token": token, "branch": branch}
        refuse_other_kind(self.repo_id, token=token, branch=branch)
        self._asked: set[Path] = set()
        self._waiting: list[Path] = []
        self._queue: queue.Queue[Path | None] = queue.Queue()
        self._closing = False
        self._failure: Exception | None = None
        # A daemon, so that an interrupted run does not wait for a Hub that does not answer.
        self._worker = threading.Thread(target=self._work, name="push", daemon=True)
        self._worker.start()

    def check(self, saved: Sequence[Path]) -> None:
        """Refuse a repository that has generations which are not those of this run.

        Raises:
            HubError: it has, or it could not be asked.
        """
        for folder in saved:
            is_published(folder, self.repo_id, token=self._options["token"])
        there = hub.tags(self.repo_id, token=self._options["token"])
        known = {folder.name for folder in saved}
        unknown = [t for t in there if t.startswith("generation-") and t not in known]
        if unknown:
            raise HubError(
                f"{self.repo_id!r} has {some(unknown)} already, and this run has {some(known)}. "
                "They belong to another run, or to this one in another --output_dir; go on with "
                "that, or push to another repository."
            )

    def publish(self, folder: Path) -> None:
        """Push a generation in the background, after those before it; again does nothing."""
        if folder not in self._asked:
            self._asked.add(folder)
            self._queue.put(folder)

    def finish(self) -> None:
        """Wait for what is under way, and try once more what failed.

        Raises:
            HubError: generations are left that could not be pushed; the local ones are whole.
        """
        self._closing = True
        self._queue.put(None)
        self._worker.join()
        if self._failure is not None:
            raise self._failure
        self._drain()
        if self._waiting:
            names = ", ".join(folder.name for folder in self._waiting)
            raise HubError(
                f"{names} could not be pushed to {self.repo_id!r}; the log says why. They are "
                f"whole in {self._waiting[0].parent}: the same command pushes them, or "
                f"hf-connectome push {self._waiting[0].parent} {self.repo_id}"
            )

    def _work(self) -> None:
        try:
            while (folder := self._queue.get()) is not None:
                self._waiting.append(folder)
                if not self._closing:  # else finish() tries all that is left, once
                    self._drain()
                self._queue.task_done()
        # What it may be is raised by finish(); a thread has nobody to raise it to.
        except Exception as error:  # noqa: BLE001
            self._failure = error

    def _drain(self) -> None:
        while self._waiting:
            folder = self._waiting[0]
            try:
                if is_published(folder, self.repo_id, token=self._options["token"]) is None:
                    pushed = publish_one(folder, self.repo_id, license=None, **self._options)
                    logger.info("%s pushed: %s", folder.name, pushed.url)
            except (HubError, OSError) as error:
                logger.warning("%s was not pushed yet: %s", folder.name, error)
                return
            self._waiting.pop(0)
