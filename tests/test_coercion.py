from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from hf_connectome.coercion import Text, choices, coerce, expected, nearest, split_items
from hf_connectome.errors import ConfigError


class Colour(Enum):
    RED = "red"
    GREEN = "green"
    NO = "no"


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("6e-4", float, 6e-4),
        ("1", float, 1.0),
        ("-1", int, -1),
        ("1e4", int, 10_000),
        ("3.0", int, 3),
        ("yes", bool, True),
        ("Off", bool, False),
        ("007", str, "007"),
        ("true", str, "true"),
        ("null", str | None, None),
        ("~", int | None, None),
        ("", float | None, None),
        ("5", int | None, 5),
        ("no", Colour | str, Colour.NO),
        ("red", Colour, Colour.RED),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2], 2),
        ("a/b.yaml", Path, Path("a/b.yaml")),
        ("a, b,", list[str], ["a", "b"]),
        ("1,2", list[int], [1, 2]),
        ("x{1,2}", str | list[str], "x{1,2}"),
        ("0.9,0.95", tuple[float, float], (0.9, 0.95)),
        ("1,2,3", tuple[int, ...], (1, 2, 3)),
        ("all", str | bool, "all"),
        ("no", str | bool, False),
        ('{"a": 1}', dict[str, Any] | str | None, {"a": 1}),
        ("file.json", dict[str, Any] | str | None, "file.json"),
        ("2.5", int | float, 2.5),
        ("12", Any, 12),
        ("6e-4", Any, 6e-4),
        ("true", Any, True),
        ("1.5.2", Any, "1.5.2"),
        ("~", Any, None),
    ],
)
def test_text_becomes_the_type_of_its_field(text: str, hint: Any, value: object) -> None:
    result = coerce("x", Text(text), hint)
    assert result == value
    assert type(result) is type(value)


def test_quoted_text_stays_text_where_that_is_allowed() -> None:
    assert coerce("x", "null", str | None) == "null"
    assert coerce("x", {"a": "1", "b": Text("1")}, dict[str, Any]) == {"a": "1", "b": 1}
    assert coerce("x", [Text("1"), "2", [Text("3")]], list) == [1, "2", [3]]


def test_value_passes_when_it_has_the_type_already() -> None:
    assert coerce("x", Colour.RED, Colour | None) is Colour.RED
    assert coerce("x", True, bool) is True
    assert coerce("x", {"a": Text("no")}, dict[str, bool]) == {"a": False}
    instance = ValueError()
    assert coerce("x", instance, ValueError | None) is instance


@pytest.mark.parametrize(
    ("value", "hint", "kind"),
    [
        (Text("fast"), float, "float"),
        (Text("nan"), float, "float"),
        (True, float, "float"),
        (Text("2.5"), int, "int"),
        (Text("inf"), int, "int"),
        (Text("maybe"), bool, "true or false"),
        (Text("null"), int, "int"),
        ([Text("1")], str, "text"),
        (Text("x"), float | None, "float or null"),
        ([Text("x")], list[int], "list of int"),
        ({}, list[int], "list of int"),
        (Text("1,2,3"), tuple[int, int], "tuple of int"),
        (Text("x"), dict[str, bool], "mapping of true or false"),
        (Text("[1]"), dict[str, bool], "mapping of true or false"),
        (Text("x"), ValueError, "ValueError"),
        (Text("3"), Literal[1, 2], "one of 1, 2"),
    ],
)
def test_error_names_value_and_type_when_it_cannot_be(value: Any, hint: Any, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coerce("a.yaml: rate", value, hint)
    shown = str(value) if isinstance(value, Text) else value
    assert str(caught.value) == f"a.yaml: rate is {shown!r}; expected {kind}."


def test_error_suggests_the_choice_when_one_is_near() -> None:
    with pytest.raises(ConfigError, match=r"one of red, green, no\. Did you mean 'green'\?"):
        coerce("colour", Text("gren"), Colour | str)


def test_choices_and_names_of_types() -> None:
    assert choices(Colour | str) == ["red", "green", "no"]
    assert choices(Literal["a"] | None) == ["a"]
    assert choices(int) == []
    assert expected(list[str] | None) == "list of text or null"
    assert expected(dict[str, Any]) == "mapping of text"


def test_split_items_and_nearest() -> None:
    assert split_items(" a,b , ,") == ["a", "b"]
    assert nearest("sed", ["seed", "size"]) == " Did you mean 'seed'?"
    assert nearest("qqq", ["seed"]) == ""
