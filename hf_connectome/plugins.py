"""Plug-ins of others by name: importing their module registers what it holds."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType


def import_plugin(name: str) -> ModuleType:
    """Import a module, once a process.

    Args:
        name: dotted name of an installed module, or the path of a ``.py`` file, which is imported
            under the file's own name.

    Raises:
        ConfigError: there is none, it fails, or another module has its name.
    """
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"the plug-in {name!r} cannot be imported: {type(error).__name__}: {error}. Expected "
            "the dotted name of an installed module, or the path of a .py file."
        ) from error


def _from_file(file: Path) -> ModuleType:
    known = sys.modules.get(file.stem)
    if known is not None:
        if Path(known.__file__ or "").resolve() == file.resolve():
            return known
        raise ImportError(f"there is a module {file.stem!r} already; rename the file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module
