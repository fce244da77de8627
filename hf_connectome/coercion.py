"""Text to the type that a dataclass field declares. Not for where it comes from: parsing.py."""

from __future__ import annotations

import difflib
import json
import re
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_NULLS = ("null", "Null", "NULL", "~", "")
_WORDS = {"true": True, "yes": True, "on": True, "y": True, "t": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "n": False,
    "f": False,
    "0": False,
}
_INTEGER = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")


class Text(str):
    """A scalar without quotes; its field decides whether 6e-4, no or 007 is a number or a name."""

    __slots__ = ()


def coerce(name: str, value: object, hint: Any) -> Any:
    """Turn a value into the type of its field.

    A union takes its first member that fits, ``str`` last; beside an enum, ``str`` only says that
    the enum's values may be written as text. Unquoted ``null`` clears what may be None.

    Args:
        name: Where the value stands, for the message.
        value: Text, str, bool, None, or lists and dicts of them.
        hint: The field's resolved type.

    Raises:
        ConfigError: The value cannot be of that type.

    Example:
        >>> coerce("learning_rate", Text("6e-4"), float)
        0.0006
    """
    try:
        return _convert(value, hint)
    except (ValueError, TypeError) as error:
        shown = str(value) if isinstance(value, Text) else value
        near = nearest(str(value), choices(hint))
        raise ConfigError(f"{name} is {shown!r}; expected {expected(hint)}.{near}") from error


def split_items(text: str) -> list[Text]:
    """Split at commas, without the blanks around and the empty ends."""
    return [Text(part.strip()) for part in text.split(",") if part.strip()]


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest, without the list of all: there may be hundreds."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def members(hint: Any) -> list[Any]:
    """List the types that a union allows; ``str`` beside an enum is left out."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    enums = any(isinstance(member, type) and issubclass(member, Enum) for member in union)
    return [member for member in union if not (enums and member is str)]


def choices(hint: Any) -> list[str]:
    """List the values that a type enumerates, as they are written."""
    values: list[object] = []
    for member in members(hint):
        if get_origin(member) is Literal:
            values += get_args(member)
        elif isinstance(member, type) and issubclass(member, Enum):
            values += [choice.value for choice in member]
    return [str(value) for value in values]


def expected(hint: Any) -> str:
    """Name a type for people."""
    if listed := choices(hint):
        return f"one of {', '.join(listed)}"
    names = {type(None): "null", str: "text", bool: "true or false", list: "list", dict: "mapping"}
    parts = []
    for member in members(hint):
        origin = get_origin(member) or member
        name = names.get(origin, getattr(origin, "__name__", str(origin)))
        items = [item for item in get_args(member) if item not in (Any, Ellipsis)]
        parts.append(f"{name} of {expected(items[-1])}" if items else name)
    return " or ".join(parts)


def _convert(value: object, hint: Any) -> Any:
    allowed = members(hint)
    if hint is not Any and isinstance(value, Text) and value in _NULLS:
        value = None
    if value is None and type(None) in allowed:
        return None
    if str in allowed and isinstance(value, str):
        # A pattern may hold commas, so text stays text where it is allowed to.
        allowed = [member for member in allowed if (get_origin(member) or member) is not list]
    for member in sorted(allowed, key=lambda member: member is str):
        with suppress(ValueError, TypeError):
            return _convert_to(value, member)
    raise ValueError


def _convert_to(value: object, hint: Any) -> Any:
    origin = get_origin(hint) or hint
    if hint is Any:
        return _resolve(value)
    if origin is Literal:
        return _pick(value, {choice: choice for choice in get_args(hint)})
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _pick(value, {choice: choice.value for choice in origin})
    if origin in _CONVERTERS:
        return _CONVERTERS[origin](value, get_args(hint))
    if isinstance(origin, type) and isinstance(value, origin):
        return value
    raise ValueError


def _resolve(value: object) -> object:
    """Decide the type of unquoted text by its looks, as YAML 1.2 does; no field decides it."""
    if isinstance(value, dict):
        return {str(key): _resolve(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item) for item in value]
    if not isinstance(value, Text):
        return value
    if value in _NULLS:
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _NUMBER.fullmatch(value) else str(value)


def _pick(value: object, written: Mapping[Any, object]) -> Any:
    for choice, text in written.items():
        if value is choice or str(value) == str(text):
            return choice
    raise ValueError


def _items(value: object) -> list[Any]:
    if isinstance(value, str):
        return list(split_items(value))
    if not isinstance(value, list):
        raise ValueError
    return value


def _to_bool(value: object, _: tuple[Any, ...]) -> bool:
    word = str(value).lower() if isinstance(value, str | bool) else ""
    if word not in _WORDS:
        raise ValueError
    return _WORDS[word]


def _to_int(value: object, _: tuple[Any, ...]) -> int:
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
    number = _to_float(value, ())
    if not number.is_integer():
        raise ValueError
    return int(number)


def _to_float(value: object, _: tuple[Any, ...]) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    number = float(value)
    if number != number:
        raise ValueError
    return number


def _to_str(value: object, _: tuple[Any, ...]) -> str:
    if not isinstance(value, str):
        raise ValueError
    return str(value)


def _to_list(value: object, kinds: tuple[Any, ...]) -> list[Any]:
    return [_convert(item, kinds[0] if kinds else Any) for item in _items(value)]


def _to_tuple(value: object, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    items = _items(value)
    kinds = kinds[:1] * len(items) if kinds[1:] == (Ellipsis,) else kinds
    return tuple(_convert(item, kind) for item, kind in zip(items, kinds, strict=True))


def _to_dict(value: object, kinds: tuple[Any, ...]) -> dict[Any, Any]:
    mapping = json.loads(value) if isinstance(value, str) else value
    if not isinstance(mapping, dict):
        raise ValueError
    key_kind, item_kind = kinds or (str, Any)
    return {_convert(key, key_kind): _convert(item, item_kind) for key, item in mapping.items()}


_CONVERTERS: dict[Any, Callable[[object, tuple[Any, ...]], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    Path: lambda value, kinds: Path(_to_str(value, kinds)),
    list: _to_list,
    tuple: _to_tuple,
    dict: _to_dict,
}
