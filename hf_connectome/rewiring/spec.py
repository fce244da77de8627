"""A method and its settings as one text, such as ``rigl:interval=50,fraction=0.2``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.rewiring.base import Rewiring, rewirings

_BOOLS = {"true": True, "false": False}


def get_rewiring(spec: str) -> Rewiring:
    """Return the method that a text names, with its settings.

    Raises:
        UnknownNameError: no such method or setting; the message offers the nearest and lists all.
        ConfigError: a value of another type or outside its range.

    Example:
        >>> get_rewiring("rigl:interval=50,fraction=0.2").interval
        50
    """
    name, _, text = spec.partition(":")
    method = rewirings.get(name)
    hints = get_type_hints(method)
    known = [field.name for field in fields(method)]
    settings = {}
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise UnknownNameError(
                f"{spec!r}: {name} has no setting {key!r}. {did_you_mean(key, known)}"
            )
        settings[key] = _converted(f"{spec!r}: {key}", value, hints[key])
    return method(**settings)


def _converted(label: str, text: str, kind: type) -> Any:
    try:
        return _BOOLS[text] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
        raise ConfigError(f"{label} is {text!r}; expected {expected}.") from error
