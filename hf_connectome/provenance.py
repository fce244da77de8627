"""Where a connectome comes from: the facts of the run that evolved it, as ``provenance.json``.

They are what the model card says of training. Nothing here names a folder, a user or a host: what
is published must not tell where it was made. What the connectome is stands in its own files.
"""

from __future__ import annotations

import json
import math
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hf_connectome.coercion import expected
from hf_connectome.data.documents import STDLIB
from hf_connectome.errors import FormatError
from hf_connectome.json_files import read_object
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    import os

PROVENANCE_FILE = "provenance.json"
PATH_PLACEHOLDER = "<path>"
_MAX_BYTES = 1 << 20
_PACKAGES = ("torch", "transformers", "peft")
_LOCAL_OPTIONS = ("cache_dir", "logging_dir", "output_dir", "run_name")
"""Options whose value is a place on this machine, whatever it looks like."""
_SECRET = re.compile(r"(?:.*_)?(?:token|key(?:_id)?|password|secret)", re.I)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_WITH_LOGIN = re.compile(r"://[^/\s]*@|://[^\s]*\?")
"""A URL that names a user, or that has parameters: either may hold a password."""
_URL = re.compile(r"\b(?:https?|hf|s3|gs)://\w[^\s\"'<>`|]*")
_PATH_START = re.compile(
    r"""(?ix)
    file:                                # file:///x, file:/x
    | [a-z]: [\\/]                       # C:\x, C:/x, and any scheme that is not a URL's
    | \\\\                               # \\server\share
    | (?<![\w/]) /+ (?=[^\s/])           # /x, //x, but not the second part of a/b
    | (?<!\w) ~                          # ~, ~/x, ~user/x
    | (?<![\w.]) \.{1,2} [\\/]           # ./x, ../x, also inside a/../b
    """
)
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
_DATA_FILE = re.compile(
    r".*\.(?:bin|bz2|csv|gz|jsonl?|model|parquet|py|txt|xz|ya?ml|zip|zst)", re.I
)


def _field(help_text: str) -> Any:
    return field(default=None, metadata={"help": help_text})


@dataclass(frozen=True)
class Provenance:
    """The facts of the run that evolved a connectome; one that is not known is None."""

    dataset: str | None = _field("Hub id of the training data; None for text of this machine.")
    corpus: str | None = _field("What was read, in words: documents, bytes and tokens.")
    corpus_digest: str | None = _field("What tells this corpus from another, wherever it lies.")
    num_train_tokens: int | None = _field("Tokens that there were to train on.")
    tokens_per_step: int | None = _field("Tokens of one optimizer step, over all processes.")
    block_size: int | None = _field("Tokens in a block.")
    optimizer: str | None = _field("Optimizer of the outer loop.")
    learning_rate: float | None = _field("Highest learning rate of the schedule.")
    lr_schedule: str | None = _field("Schedule of one generation, such as 'cosine'.")
    seed: int | None = _field("Seed of the run.")
    precision: str | None = _field("Number format of the computation, such as 'float32'.")
    num_processes: int | None = _field("Processes that trained together.")
    hardware: str | None = _field("Model of the processor or accelerator.")
    train_seconds: float | None = _field("Wall-clock seconds of training, all generations.")
    versions: dict[str, str] | None = field(
        default=None, metadata={"help": "Package -> version, Python among them."}
    )
    command: str | None = _field("The command, with a placeholder for every local path.")
    created: str | None = _field("Day of the run's end, as 2025-04-29.")

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the known facts as ``provenance.json`` into an existing folder.

        Raises:
            StorageError: the file system refused.
        """
        file = Path(folder) / PROVENANCE_FILE
        known = {name: value for name, value in asdict(self).items() if value is not None}
        with refused_writes_named(file):
            write_atomically(file, (json.dumps(known, indent=2, sort_keys=True) + "\n").encode())
        return file

    def cleaned(self) -> Provenance:
        """Take out what names a place or holds a secret, whoever wrote it."""
        facts = asdict(self)
        for name, value in facts.items():
            if isinstance(value, str):
                facts[name] = _HUB_TOKEN.sub("<token>", without_paths(value))
        if self.command is not None:
            try:
                facts["command"] = public_command(shlex.split(self.command) or [""])
            except ValueError:  # quotes that are not closed
                facts["command"] = None
        facts["dataset"] = hub_id(self.dataset)
        if self.versions is not None:
            facts["versions"] = {n: without_paths(v) for n, v in self.versions.items()}
        return Provenance(**facts)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Provenance | None:
        """Read what :meth:`write` wrote; None where there is no such file.

        Keys of later releases are ignored.

        Raises:
            FormatError: the file is too large, no JSON object, or a fact has the wrong type.
        """
        file = Path(folder) / PROVENANCE_FILE
        if not file.is_file():
            return None
        facts = read_object(file, most_bytes=_MAX_BYTES, way_out="Remove it, or write it anew.")
        hints = get_type_hints(cls)
        known = {name: facts[name] for name in hints if facts.get(name) is not None}
        for name, value in known.items():
            if not _is_of(value, hints[name]):
                raise FormatError(
                    f"{file}: {name} is {str(value)[:80]!r} ({type(value).__name__}); expected "
                    f"{expected(hints[name])}. Correct it, or remove the file."
                )
        return cls(**known)


def collect(
    *, argv: Sequence[str] | None = None, dataset: str | None = None, **facts: Any
) -> Provenance:
    """Build the provenance of a run from plain values; what names a place is taken out.

    Versions and the day are filled in where they are not given.

    Args:
        argv: the program and its arguments, as in ``sys.argv``; becomes ``command``.
        dataset: as it was given to the run: a Hub id is kept, a file or folder becomes None.
        facts: the other fields of :class:`Provenance`.

    Example:
        >>> collect(argv=["/a/recipes/evolve.py", "--dataset", "/b/c.txt"], seed=0).command
        'recipes/evolve.py --dataset <dataset>'
    """
    cleaned: dict[str, Any] = {
        n: without_paths(v) if isinstance(v, str) else v for n, v in facts.items()
    }
    if argv:
        cleaned["command"] = public_command(argv)
    if dataset is not None:
        cleaned["dataset"] = hub_id(dataset)
    if dataset == STDLIB:  # on every machine under this name, but not on the Hub
        cleaned["corpus"] = "; ".join(filter(None, (STDLIB, cleaned.get("corpus"))))
    cleaned.setdefault("versions", versions())
    cleaned.setdefault("created", datetime.now(timezone.utc).date().isoformat())
    return Provenance(**cleaned)


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that decide a result."""
    from hf_connectome import __version__

    found = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "hf_connectome": __version__, **found}


def hardware(device: str = "cpu") -> str | None:
    """Return the model of an accelerator or of the processor; None where it is not known.

    Args:
        device: as torch writes it, such as ``cuda:0``.
    """
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system than Linux
        return platform.processor() or platform.machine() or None
    names = re.findall(r"(?m)^model name\s*: *(.+)$", text)
    return names[0].strip() if names else platform.machine() or None


# ---- what may be published -----------------------------------------------------------------------


def without_paths(text: str) -> str:
    """Cut every line at the first local path, which becomes ``<path>``.

    The rest of the line goes with it, because a path may hold blanks. URLs stay.

    Example:
        >>> without_paths("read /data/my texts/a.txt")
        'read <path>'
        >>> without_paths("https://hf.co/org/name, org/name, 3.5 tokens/s")
        'https://hf.co/org/name, org/name, 3.5 tokens/s'
    """
    return "".join(_cut(line) for line in text.splitlines(keepends=True))


def is_local_path(text: str) -> bool:
    """Whether a text is or holds a path: absolute, ``~``, ``./``, ``../``, Windows or file URL."""
    return without_paths(text) != text


def hub_id(text: str | None) -> str | None:
    """Return a text that can be an id on the Hub and is nothing on this machine, else None.

    Example:
        >>> hub_id("HuggingFaceFW/fineweb"), hub_id("./texts"), hub_id("a.txt.xz"), hub_id("a/b/c")
        ('HuggingFaceFW/fineweb', None, None, None)
    """
    if text is None or text == STDLIB or _DATA_FILE.fullmatch(text) or not can_be_hub_id(text):
        return None
    return None if Path(text).exists() else text


def can_be_hub_id(text: str) -> bool:
    """Whether the Hub would accept a text as the id of a repository, whatever is on this machine.

    Source: huggingface_hub.utils.validate_repo_id, and ASCII only.
    """
    odd = "--" in text or ".." in text or text.endswith((".git", ".ipynb", ".", "-"))
    return len(text) <= 96 and not odd and bool(_HUB_ID.fullmatch(text))


def public_command(argv: Sequence[str]) -> str:
    """Join a command line, with a placeholder of the option's name for local paths and secrets.

    Example:
        >>> public_command(["/x/recipes/evolve.py", "--config", "cpu", "--output_dir=runs/a b"])
        'recipes/evolve.py --config cpu --output_dir=<output_dir>'
    """
    program = Path(argv[0].replace("\\", "/"))
    words = ["recipes/" + program.name if program.parent.name == "recipes" else program.name]
    return " ".join([*words, *_public_arguments(argv[1:])])


def _public_arguments(arguments: Sequence[str]) -> Iterator[str]:
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and not is_local_path(name):
            option = name.lstrip("-").replace("-", "_")
            yield f"{name}={_public_value(value, option)}" if equals else name
        else:
            yield _public_value(argument, option)


def _public_value(value: str, option: str) -> str:
    placeholder = f"<{option}>" if option else PATH_PLACEHOLDER
    is_deep = value.count("/") > 1 and not _URL.fullmatch(value)  # a Hub id has one at most
    secret = _SECRET.fullmatch(option) or _HUB_TOKEN.search(value) or _WITH_LOGIN.search(value)
    local = option in _LOCAL_OPTIONS or is_local_path(value) or is_deep or "\\" in value
    if secret or local or _DATA_FILE.fullmatch(value) or _exists(value):
        return placeholder
    return shlex.quote(value)


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _cut(line: str) -> str:
    urls = [match.span() for match in _URL.finditer(line)]
    for match in _PATH_START.finditer(line):
        start = match.start()
        if not any(first <= start < last for first, last in urls):
            end = "\n" if line.endswith("\n") else ""
            return line[:start] + PATH_PLACEHOLDER + end
    return line


# ---- reading -------------------------------------------------------------------------------------


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type; numbers must be finite and not negative."""
    kinds = {str: "text", int: "whole", float: "number"}
    wanted = {kinds[kind] for kind in kinds if kind in getattr(hint, "__args__", ())}
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return "text" in wanted
    if isinstance(value, int | float):
        fits = "number" in wanted or ("whole" in wanted and isinstance(value, int))
        return fits and 0 <= value < math.inf
    if isinstance(value, dict) and not wanted:
        return all(isinstance(item, str) for item in value.values())
    return False
