"""Name -> class, so that a config can name a class in JSON and a plug-in is one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name, of one kind ("criterion", "wiring", "reset")."""

    def __init__(self, kind: str) -> None:
        """Start empty; ``kind`` is the word used in errors."""
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Register the decorated class under ``name``; a name is given once."""

        def add(cls: type[T]) -> type[T]:
            known = self._classes.get(name)
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise ConfigError(f"the {self.kind} {name!r} is {known.__qualname__} already.")
            self._classes[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """Return the class registered under ``name``.

        Raises:
            UnknownNameError: no such name; the message offers the nearest and lists all.
        """
        if name not in self._classes:
            raise UnknownNameError(f"unknown {self.kind} {name!r}. {did_you_mean(name, self)}")
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes
