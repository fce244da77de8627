from __future__ import annotations

import pytest

from hf_connectome.errors import ConfigError, ConnectomeError, UnknownNameError, did_you_mean, some
from hf_connectome.registry import Registry


@pytest.fixture
def registry():
    made = Registry("criterion")
    made.register("movement")(type("Movement", (), {}))
    made.register("magnitude")(type("Magnitude", (), {}))
    return made


def test_class_is_found_under_its_name(registry):
    assert registry.get("magnitude").__name__ == "Magnitude"
    assert "magnitude" in registry
    assert "Magnitude" not in registry


def test_names_are_listed_in_order_whatever_the_order_of_registration(registry):
    assert list(registry) == ["magnitude", "movement"]


def test_decorator_gives_the_class_back():
    class Mine:
        pass

    assert Registry("wiring").register("mine")(Mine) is Mine


def test_unknown_name_is_refused_with_the_nearest_and_all(registry):
    with pytest.raises(
        UnknownNameError,
        match=r"unknown criterion 'magnitud'. Did you mean 'magnitude'\? "
        r"Available: magnitude, movement\.",
    ):
        registry.get("magnitud")


def test_no_name_is_offered_when_none_is_near(registry):
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'xyz'. Available: magnitude"):
        registry.get("xyz")


def test_name_is_given_once(registry):
    with pytest.raises(ConfigError, match="the criterion 'magnitude' is Magnitude already"):
        registry.register("magnitude")(type("Other", (), {}))
    assert registry.get("magnitude").__name__ == "Magnitude"


def test_class_is_replaced_when_its_module_is_run_again(registry):
    again = type("Magnitude", (), {})
    registry.register("magnitude")(again)
    assert registry.get("magnitude") is again


def test_registries_share_nothing(registry):
    assert "magnitude" not in Registry("wiring")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["a"], "'a'"),
        (["a", "b", "c"], "'a', 'b', 'c'"),
        (["a", "b", "c", "d", "e"], "'a', 'b', 'c' and 2 more"),
    ],
)
def test_three_names_are_listed_and_the_rest_counted(names, expected):
    assert some(iter(names)) == expected


def test_nearest_name_is_offered():
    assert did_you_mean("globl", {"global": 1, "per-tensor": 2}) == (
        "Did you mean 'global'? Available: global, per-tensor."
    )


def test_every_error_is_also_the_builtin_a_caller_would_catch():
    from hf_connectome import errors

    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ConnectomeError)
    }
    assert len(kinds) > 5
    for name, kind in kinds.items():
        assert kind is ConnectomeError or issubclass(kind, (ValueError, RuntimeError, OSError)), (
            name
        )
