"""convert, load-test: from other files, to the other codec, and onto a fresh model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_connectome.cli import describing
from hf_connectome.cli.options import (
    CacheDir,
    Json,
    LocalFilesOnly,
    PathOrId,
    Revision,
    Source,
    Subfolder,
    Token,
)
from hf_connectome.cli.output import Code, Facts, Result, count, share
from hf_connectome.cli.sizes import size
from hf_connectome.cli.trial import Trial, try_out

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome

_MIB = 1 << 20
_SourcePath = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Connectome (folder or Hub id), trained sparse checkpoint (folder), or "
        "model_generation_….pt of the paper's published code.",
        show_default=False,
    ),
]
_Target = Annotated[
    Path, typer.Argument(metavar="DST", help="Folder for the connectome.", show_default=False)
]


def convert(
    path: _SourcePath,
    to: _Target,
    codec: Annotated[
        str,
        typer.Option(
            help="plain (1 bit a weight and 1 a survivor), zstd (smaller) or context (smallest)."
        ),
    ] = "plain",
    scope: Annotated[
        str,
        typer.Option(
            help="Of a checkpoint: all-matrices, all-linear, body, embeddings, or a regular "
            "expression of module names."
        ),
    ] = "all-matrices",
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Of a checkpoint: ending of modules to leave out; may be repeated."),
    ] = None,
    allow_dense: Annotated[
        bool,
        typer.Option("--allow-dense", help="Take a checkpoint with hardly a zero weight, too."),
    ] = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Change the codec, or make a connectome of a checkpoint."""
    from hf_connectome.codecs import check_codec
    from hf_connectome.conversion import open_any
    from hf_connectome.hub import TOKENIZER_FILES
    from hf_connectome.storage import WEIGHTS_FILE, write

    check_codec(codec)
    source = Source(path, revision, subfolder, token, cache_dir, local_files_only)
    local = Path(path, subfolder or "")
    if not local.exists() or revision is not None:
        local = source.folder(TOKENIZER_FILES)
    connectome, kind = open_any(local, scope=scope, exclude=exclude, allow_dense=allow_dense)
    write(connectome, to, codec=codec)
    copy_companions(local, to)
    document = {
        "source": path,
        "kind": kind,
        "path": str(to),
        **describing.identity(connectome),
        "file": size(connectome, to / WEIGHTS_FILE),
        "densities": connectome.densities(),
    }
    return Result(document, [_converted(document, connectome)], json)


def copy_companions(source: Path, to: Path, *, provenance: bool = True) -> None:
    """Let tokenizer and, if asked, provenance come along; those of another connectome go."""
    from hf_connectome.hub import TOKENIZER_FILES
    from hf_connectome.provenance import PROVENANCE_FILE
    from hf_connectome.storage import refused_writes_named

    if source.resolve() == to.resolve():
        return
    with refused_writes_named(to):
        for name in (*TOKENIZER_FILES, PROVENANCE_FILE):
            (to / name).unlink(missing_ok=True)
            wanted = provenance or name != PROVENANCE_FILE
            if wanted and source.is_dir() and (source / name).is_file():
                shutil.copyfile(source / name, to / name)


def _converted(document: dict[str, Any], connectome: "Connectome") -> Facts:
    file, densities = document["file"], connectome.densities()
    low, high = (choose(densities, key=densities.__getitem__) for choose in (min, max))
    weights = f"{count(document['num_survivors'])} of {count(document['num_weights'])}"
    return Facts(
        [
            ("from", f"{document['source']} ({document['kind']})"),
            ("to", document["path"]),
            ("survivors", f"{weights} weights"),
            ("density", share(document["density"])),
            ("  least", f"{share(densities[low])} {low}"),
            ("  most", f"{share(densities[high])} {high}"),
            ("digest", document["digest"]),
            ("file", f"{count(file['bytes'])} bytes, codec {file['codec']}"),
            ("next", f"hf-connectome load-test {document['path']}"),
        ]
    )


def load_test(
    path: PathOrId,
    seed: Annotated[int, typer.Option(help="Of the fresh model and the random input.")] = 0,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Train a fresh model one step under it; exit 3 if that fails.

    The input is random; afterwards every dead weight must be exactly 0 and the loss finite.
    """
    folder = Source(path, revision, subfolder, token, cache_dir, local_files_only).folder()
    trial = try_out(folder, seed=seed)
    code = Code.DIFFERENT if trial.reasons else Code.FINE
    return Result({"path": path, **trial.document()}, [_tried(path, trial)], json, code)


def _tried(path: str, trial: Trial) -> Facts:
    peak = None if trial.peak_bytes is None else f"{trial.peak_bytes / _MIB:,.0f} MiB"
    weights = f"{count(trial.num_trainable)} trainable of {count(trial.num_parameters)}"
    return Facts(
        [
            ("path", path),
            ("model", f"{trial.model}, fresh"),
            ("parameters", weights),
            ("dead weights", f"{count(trial.num_dead)}, not 0 after the step: {trial.num_leaks}"),
            ("survivors moved", count(trial.num_changed)),
            ("loss", f"{trial.loss:.4f} on random input"),
            ("seconds", f"{trial.build_seconds:.2f} to build, {trial.step_seconds:.2f} for a step"),
            ("peak memory", peak),
            ("result", "ok" if not trial.reasons else f"FAILED: {'; '.join(trial.reasons)}"),
        ]
    )
