"""What goes wrong on purpose: a refusal, damaged bytes, a connection that is lost half-way."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Fault:
    """What happens to the next requests that match."""

    pattern: str
    method: str | None
    times: int | None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    mangle: Callable[[bytes], bytes] | None = None
    drop: Literal["request", "answer"] | None = None

    def is_due(self, method: str, target: str) -> bool:
        if self.method is None:
            # A HEAD has no body that could be damaged or cut.
            wanted = method != "HEAD" or self.status is not None
        else:
            wanted = method == self.method
        return wanted and self.times != 0 and re.search(self.pattern, target) is not None


class Faults:
    """The faults of one server, oldest first."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()

    def next(self, method: str, target: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.is_due(method, target):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None
