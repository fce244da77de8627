"""The errors a user can meet, one class a cause. Broken invariants of our own assert instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConnectomeError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownNameError(ConnectomeError, ValueError):
    """A name (criterion, reset, option, corpus) that nothing is registered under."""


class ScopeError(ConnectomeError, ValueError):
    """A scope or a count that the model cannot satisfy."""


class HostMismatchError(ConnectomeError, ValueError):
    """A connectome on a host it was not made for: other shapes, names, orientation, tokenizer."""


class FormatError(ConnectomeError, ValueError):
    """A connectome file or repository that is damaged, foreign or altered; nothing was loaded."""


class ConfigError(ConnectomeError, ValueError):
    """A setting outside its range, or two settings that exclude each other."""


class DataError(ConnectomeError, ValueError):
    """A corpus, tokenizer or table of human data that cannot give what was asked of it."""


class RunError(ConnectomeError, RuntimeError):
    """A run directory that belongs to another configuration or cannot be continued."""


class StorageError(ConnectomeError, OSError):
    """The file system refused a write (disk full, no permission); what was there is whole."""


class HubError(ConnectomeError, OSError):
    """The Hub refused or could not be reached; what is on this machine is whole."""


class UnsupportedError(ConnectomeError, RuntimeError):
    """A set-up in which masks could not be enforced exactly, so it is refused."""


def some(names: Iterable[str], most: int = 3) -> str:
    """List at most ``most`` names, then the number left out."""
    listed = [repr(name) for name in names]
    left = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {left} more" if left > 0 else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest, and list the known names."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Available: {', '.join(choices)}."
