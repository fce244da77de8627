"""The settings of a recipe: dataclasses filled from YAML files and the command line.

Not for what a setting means: the dataclasses check that themselves.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NoReturn, get_origin, get_type_hints

from hf_connectome.coercion import Text, choices, coerce, members, nearest, split_items
from hf_connectome.errors import ConfigError, ConnectomeError, some
from hf_connectome.plugins import import_plugin

TRACEBACK_VARIABLE = "HF_CONNECTOME_TRACEBACK"

_UNSET = object()
_MOST_CHOICES_IN_HELP = 8
_METAVARS = {int: "N", float: "X", bool: "BOOL", Path: "PATH", dict: "JSON"}


def parse(
    dataclass_types: Sequence[type[Any]],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    config_dir: Path | None = None,
    default_config: str | None = None,
) -> tuple[Any, ...]:
    """Fill one instance of each dataclass: command line over ``--config`` files over defaults.

    First of all, ``--import my_module`` imports the plug-ins of others.
    ``--config`` may come several times; later files override earlier ones. Unquoted ``null`` clears
    an optional setting, in a file and on the command line. A list takes ``a b`` or ``a,b``.

    Args:
        dataclass_types: No field name may occur in two of them.
        argv: Without the program's name; None means that of the process.
        prog: Shown in the help text.
        description: Shown in the help text.
        config_dir: Where ``--config openstax`` finds ``openstax.yaml``; paths work without it.
        default_config: What comes before every other file.

    Returns:
        The instances, in the order of ``dataclass_types``.

    Raises:
        ConfigError: An unknown option, key or file, a value of the wrong type, a required setting
            that is missing, a ValueError of a dataclass's own check, or a plug-in that cannot be
            imported.
    """
    _import_plugins(argv)
    hints = {name: hint for kind in dataclass_types for name, hint in _init_hints(kind).items()}
    parser = _make_parser(dataclass_types, hints, prog=prog, description=description)
    files, given = _read_command_line(parser, argv, hints)
    settings: dict[str, object] = {}
    for name in [*([] if default_config is None else [default_config]), *files]:
        settings |= _read_file(_find_config(name, config_dir), hints)
    settings |= given
    return tuple(_build(kind, settings) for kind in dataclass_types)


@contextmanager
def friendly_errors(prog: str) -> Iterator[None]:
    """Print an error of this package as one message and exit with 2; a decorator too.

    Ctrl-C exits with 130.

    With HF_CONNECTOME_TRACEBACK=1 in the environment the error passes through, traceback and all.
    """
    try:
        yield
    except ConnectomeError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        sys.stderr.write(f"{prog}: error: {error}\n")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{prog}: stopped. The same command goes on from what was saved.\n")
        raise SystemExit(130) from None


def explicit_settings(instances: Iterable[Any]) -> dict[str, object]:
    """Collect the settings that differ from the defaults, ready for JSON; required ones always.

    What a dataclass derives from its defaults alone is left out, what it derives from another
    setting is not. Tokens are replaced by their name.
    """
    settings: dict[str, object] = {}
    for instance in instances:
        untouched = _with_defaults(instance)
        for field in _init_fields(instance):
            value = _plain(getattr(instance, field.name))
            if _is_required(field) or value != _plain(getattr(untouched, field.name)):
                secret = field.name.endswith("_token") and value is not None
                settings[field.name] = f"<{field.name.upper()}>" if secret else value
    return settings


def settings_difference(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Say what changed between two results of ``explicit_settings``, a line each, sorted by name.

    Example:
        >>> settings_difference({"learning_rate": 0.001}, {"learning_rate": 0.002, "seed": 7})
        ['learning_rate: 0.001 -> 0.002', 'seed: (default) -> 7']
    """
    return [
        f"{name}: {old.get(name, '(default)')} -> {new.get(name, '(default)')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _UNSET) != new.get(name, _UNSET)
    ]


# Files and the command line


def _import_plugins(argv: Sequence[str] | None) -> None:
    """Import what ``--import`` names, before a setting is checked against what is registered."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_import(parser)
    try:
        namespace, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for name in getattr(namespace, "import", []):
        import_plugin(name)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        action="append",
        default=argparse.SUPPRESS,
        metavar="MODULE",
        help="module with a criterion or other plug-in of your own: a dotted name or the path of a "
        ".py file; may come several times",
    )


def _find_config(name: str, config_dir: Path | None) -> Path:
    candidates = [Path(name)]
    if config_dir is not None:
        candidates += [config_dir / name, config_dir / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = [] if config_dir is None else sorted(path.stem for path in config_dir.glob("*.yaml"))
    listed = f", or one of {', '.join(known)}" if known else ""
    near = nearest(name, known)
    raise ConfigError(f"--config {name!r} is not a file; expected the path of one{listed}.{near}")


def _read_file(path: Path, hints: Mapping[str, Any]) -> dict[str, object]:
    content = _load_yaml(path)
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path} holds a {kind}; expected lines of the form 'setting: value'.")
    for name in content:
        if name not in hints:
            near = nearest(str(name).replace("-", "_"), hints)
            raise ConfigError(f"{path}: unknown setting {str(name)!r}.{near}")
    return {
        str(name): coerce(f"{path}: {name}", value, hints[name]) for name, value in content.items()
    }


def _load_yaml(path: Path) -> object:
    """Read lists, dicts and text; unquoted scalars stay Text, as YAML takes 6e-4 for no number."""
    import yaml

    class Loader(yaml.BaseLoader):
        def construct_scalar(self, node: Any) -> Any:
            text = super().construct_scalar(node)
            return Text(text) if isinstance(text, str) and not node.style else text

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            mapping = super().construct_mapping(node, deep=deep)
            if len(mapping) < len(node.value):
                keys = [str(key.value) for key, _ in node.value]
                twice = sorted({key for key in keys if keys.count(key) > 1})
                raise ConfigError(f"{path}: {some(twice)} is given more than once. Keep one line.")
            return mapping

    try:
        loaded: object = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    return loaded


def _read_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, hints: Mapping[str, Any]
) -> tuple[list[str], dict[str, object]]:
    unset = argparse.Namespace(**dict.fromkeys(hints, _UNSET))
    namespace, rest = parser.parse_known_args(argv, unset)
    if rest:
        name = rest[0].split("=")[0]
        near = nearest(f"--{name.lstrip('-').replace('-', '_')}", [f"--{k}" for k in hints])
        what = "unknown option" if name.startswith("-") else "unexpected argument"
        raise ConfigError(f"{what} {name!r}.{near} Run with --help for the list.")
    given: dict[str, object] = {}
    for name, hint in hints.items():
        value = getattr(namespace, name)
        if value is _UNSET:
            continue
        if isinstance(value, list):
            value = [part for text in value for part in split_items(text)]
        elif isinstance(value, str) and value:
            value = Text(value)
        given[name] = coerce(f"--{name}", value, hint)
    return getattr(namespace, "config", []), given


def _build(kind: type[Any], settings: Mapping[str, object]) -> Any:
    fields = _init_fields(kind)
    missing = [f"--{f.name}" for f in fields if _is_required(f) and f.name not in settings]
    if missing:
        raise ConfigError(f"{some(missing)} must be given, as an option or in a --config file.")
    try:
        return kind(**{f.name: settings[f.name] for f in fields if f.name in settings})
    except ConnectomeError:
        raise
    except ValueError as error:
        raise ConfigError(f"{kind.__name__}: {error}") from error


# Dataclasses


def _init_fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _init_hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in _init_fields(kind)}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _with_defaults(instance: Any) -> Any:
    """Make what the defaults alone would give, with the required settings of this instance."""
    kind = type(instance)
    given = {f.name: getattr(instance, f.name) for f in _init_fields(kind) if _is_required(f)}
    # Reading TrainingArguments.device would start accelerate anew under a run that is going on.
    twin = type(kind.__name__, (kind,), {"device": None})
    try:
        return twin(**given)
    except (ValueError, TypeError):
        # Its own check refuses the defaults alone, so compare with them as they are declared.
        return SimpleNamespace(**{f.name: _declared(f) for f in _init_fields(kind)})


def _declared(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if _is_required(field) else field.default


def _plain(value: Any) -> Any:
    """Turn a setting into what JSON can hold."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _written(default: Any) -> Any:
    plain = _plain(default)
    return ",".join(map(str, plain)) if isinstance(plain, list) else plain


# Options and their help


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names each option once: its twin with dashes works, but would double the page."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        options = action.option_strings
        twins = {option: f"--{option[2:].replace('-', '_')}" for option in options}
        shown.option_strings = [o for o in options if o == twins[o] or twins[o] not in options]
        return super()._format_action_invocation(shown)


def _make_parser(
    dataclass_types: Sequence[type[Any]], hints: Mapping[str, Any], *, prog: str, description: str
) -> argparse.ArgumentParser:
    """Make a group of options for each class that declares fields, those of transformers last."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(message)

    parser = Parser(
        (),
        prog=prog,
        description=description,
        usage="%(prog)s [--config NAME] [--option VALUE ...]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="YAML file of settings; several are merged, later over earlier",
    )
    _add_import(parser)
    owners: dict[type[Any], list[dataclasses.Field[Any]]] = {}
    for kind in dataclass_types:
        for field in _init_fields(kind):
            owner = next(c for c in kind.__mro__ if field.name in inspect.get_annotations(c))
            owners.setdefault(owner, []).append(field)
    for owner in sorted(owners, key=lambda owner: owner.__module__.startswith("transformers.")):
        group = parser.add_argument_group(_title(owner))
        for field in owners[owner]:
            _add_option(parser, group, field, hints[field.name])
    return parser


def _title(owner: type[Any]) -> str:
    """Take the first line of the docstring, unless dataclass wrote it."""
    line = (inspect.getdoc(owner) or owner.__name__).splitlines()[0]
    return owner.__name__ if line.startswith(f"{owner.__name__}(") else line.rstrip(".")


def _add_option(parser: Any, group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Let HfArgumentParser spell the option; ``coerce`` converts its text, as a file's."""
    option = copy.copy(field)
    option.type = hint
    text = str(field.metadata.get("help", "")).replace("%%", "%").replace("%", "%%")
    option.metadata = MappingProxyType({**field.metadata, "help": text or " "})
    before = len(parser._actions)
    parser._parse_dataclass_field(group, option)
    action, *switches = parser._actions[before:]
    kinds = {get_origin(member) or member for member in members(hint)}
    if str not in kinds and kinds & {list, tuple}:
        action.nargs = "+"
    elif str not in kinds and bool in kinds:
        action.nargs, action.const = "?", True
    listed = choices(hint)
    few = 0 < len(listed) <= _MOST_CHOICES_IN_HELP
    action.metavar = f"{{{','.join(listed)}}}" if few else "NAME"
    if not listed:
        action.metavar = next((_METAVARS[kind] for kind in _METAVARS if kind in kinds), "TEXT")
    action.type = action.choices = None
    action.required = False
    action.default = argparse.SUPPRESS if _is_required(field) else _written(_declared(field))
    if _is_required(field):
        action.help = f"{text} (required)"
    for switch in switches:
        switch.help, switch.default = f"turn off --{field.name}", argparse.SUPPRESS
