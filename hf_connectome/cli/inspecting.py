"""show, verify, diff: look at connectomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_connectome.cli import describing
from hf_connectome.cli.options import (
    All,
    CacheDir,
    Json,
    LocalFilesOnly,
    PathOrId,
    Revision,
    Source,
    Subfolder,
    Token,
)
from hf_connectome.cli.output import Code, Facts, Result, Table, count, share
from hf_connectome.cli.sizes import size
from hf_connectome.cli.wiring import degree_table
from hf_connectome.errors import (
    ConfigError,
    FormatError,
    HostMismatchError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome

_IN_A_LINE = 8


# ---- show ----------------------------------------------------------------------------------------


def show(
    path: PathOrId,
    every: All = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw density by layer and module into this PNG (needs matplotlib)."),
    ] = None,
    degrees: Annotated[
        bool, typer.Option("--degrees", help="Say how many links the units of a parameter have.")
    ] = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Say what a connectome is: size, density, identity, lineage."""
    from hf_connectome.storage import WEIGHTS_FILE, read

    source = Source(path, revision, subfolder, token, cache_dir, local_files_only)
    folder = source.folder()
    connectome = read(folder)
    document: dict[str, Any] = {
        "path": path,
        **describing.identity(connectome),
        "file": size(connectome, folder / WEIGHTS_FILE),
        "lineage": [dict(row) for row in connectome.lineage],
        "parameters": describing.parameters(connectome),
    }
    if figure is not None:
        _draw(connectome, figure)
        document["figure"] = str(figure)
    parts = [_identity(document), _lineage(document), _densities(connectome, every)]
    if degrees:
        document["degrees"] = describing.degrees(connectome)
        parts.append(degree_table(document["degrees"]))
    return Result(document, [part for part in parts if part is not None], json)


def _draw(connectome: "Connectome", figure: Path) -> None:
    from hf_connectome.analysis.densities import density_figure

    density_figure(connectome, figure)


def _identity(document: dict[str, Any]) -> Facts:
    file, tokenizer = document["file"], document.get("tokenizer_digest")
    weights = f"{count(document['num_survivors'])} of {count(document['num_weights'])}"
    signs = "" if document["has_signs"] else ", mask only (no signs)"
    return Facts(
        [
            ("path", document["path"]),
            ("architecture", document["architecture"] or "not recorded"),
            ("generation", document.get("generation")),
            ("survivors", f"{weights} weights in {document['num_parameters']} parameters{signs}"),
            ("density", share(document["density"])),
            ("digest", document["digest"]),
            ("fingerprint", document["base_fingerprint"]),
            ("reset", f"{document.get('reset')}, magnitude {document.get('magnitude')}"),
            ("tokenizer", document.get("tokenizer") or ("not named" if tokenizer else None)),
            ("  its digest", tokenizer),
            ("figure", document.get("figure")),
            (
                "file",
                f"{count(file['bytes'])} bytes, codec {file['codec']}, "
                f"{file['bits_per_weight']:.3f} bits a weight",
            ),
            (
                "",
                f"{file['times_smaller_than_bf16']:.1f} times smaller than bfloat16, "
                f"{file['times_floor']:.3f} of the i.i.d. floor",
            ),
        ]
    )


def _lineage(document: dict[str, Any]) -> Table | None:
    if not document["lineage"]:
        return None
    rows = [
        (
            row.get("generation"),
            _number(row.get("density")),
            _number(row.get("num_survivors")),
            _number(row.get("eval_loss")),
            str(row.get("digest", "-"))[:12],
        )
        for row in document["lineage"]
    ]
    header = ("generation", "density", "survivors", "held-out loss", "digest")
    return Table(header, rows, frozenset({"digest"}))


def _number(value: object) -> str | None:
    """Write a number of a lineage, whose rows may come from a stranger."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None if value is None else str(value)
    return count(value) if isinstance(value, int) else f"{value:.4f}"


def _densities(connectome: "Connectome", every: bool) -> Table:
    if every:
        rows: list[Sequence[object]] = [
            (
                row["name"],
                "x".join(map(str, row["shape"])),
                row["orientation"],
                count(row["num_survivors"]),
                share(row["density"]),
            )
            for row in describing.parameters(connectome)
        ]
        header = ("parameter", "shape", "stored", "survivors", "density")
        return Table(header, rows, frozenset({"stored"}))
    rows = [
        (
            row["module"],
            row["num_layers"],
            count(row["num_weights"]),
            count(row["num_survivors"]),
            _by_layer(row["densities"]),
        )
        for row in describing.modules(connectome)
    ]
    header = ("module", "layers", "weights", "survivors", "density by layer")
    return Table(header, rows, frozenset({"density by layer"}))


def _by_layer(densities: Sequence[float]) -> str:
    """Write one density where all layers have it, else one a layer, some in a line."""
    if len({share(density) for density in densities}) == 1:
        return share(densities[0])
    texts = [share(density, 2).removeprefix("0") for density in densities]
    lines = [texts[i : i + _IN_A_LINE] for i in range(0, len(texts), _IN_A_LINE)]
    return "\n".join(" ".join(line) for line in lines)


# ---- verify --------------------------------------------------------------------------------------


def verify(
    path: PathOrId,
    against: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Another folder or Hub id that must hold the same."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The digest it must have; 12 or more hex digits."),
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Check every byte; exit 3 if it is damaged or altered."""
    _check_digest(digest)
    source = Source(path, revision, subfolder, token, cache_dir, local_files_only)
    folder = source.folder()
    other = None
    if against is not None:
        other = Source(against, None, None, token, cache_dir, local_files_only).connectome()
    checks: list[dict[str, Any]] = []
    found = _check_files(folder, checks)
    if found is not None and digest is not None:
        _compare(checks, "--digest", found.digest[: len(digest)], digest.lower())
    if found is not None and other is not None:
        _compare(checks, "--against", found.digest, other.digest)
    sound = all(check["ok"] for check in checks)
    document = {
        "path": path,
        "sound": sound,
        "digest": None if found is None else found.digest,
        "checks": checks,
    }
    rows = [(c["check"], "ok" if c["ok"] else "FAILED", c["detail"]) for c in checks]
    table = Table(("check", "result", "detail"), rows, frozenset({"result", "detail"}))
    facts = Facts([("path", path), ("digest", document["digest"] or "-")])
    return Result(document, [facts, table], json, Code.FINE if sound else Code.DIFFERENT)


def _check_digest(digest: str | None) -> None:
    fits = digest is None or (
        12 <= len(digest) <= 64 and not set(digest.lower()) - set("0123456789abcdef")
    )
    if not fits:
        raise ConfigError(
            f"--digest is {digest!r}; expected 12 to 64 hex digits, as `hf-connectome show` prints "
            "them."
        )


def _note(checks: list[dict[str, Any]], check: str, ok: bool, detail: str) -> None:
    checks.append({"check": check, "ok": ok, "detail": detail})


def _compare(checks: list[dict[str, Any]], check: str, here: str, there: str) -> None:
    detail = "the same digest" if here == there else f"{here[:12]}… here, {there[:12]}… expected"
    _note(checks, check, here == there, detail)


def _check_files(folder: Path, checks: list[dict[str, Any]]) -> "Connectome | None":
    """Check the config and the file, note each, and return what was read if both are sound.

    Raises:
        ConfigError: this release of transformers cannot build the recorded architecture, so that
            nothing can be said about the file.
    """
    from hf_connectome.architecture import build_host
    from hf_connectome.storage import WEIGHTS_FILE, from_file, read_config

    try:
        config = read_config(folder)
    except (FormatError, ConfigError, UnknownNameError) as error:
        _note(checks, "config", False, str(error))
        return None
    _note(checks, "config", True, f"{config.architecture}, generation {config.generation}")
    host = build_host(config, device="meta")
    try:
        found = from_file(folder / WEIGHTS_FILE, host, config)
    except (FormatError, HostMismatchError) as error:
        _note(checks, "file", False, str(error))
        return None
    survivors = f"{count(found.num_survivors)} survivors"
    _note(checks, "file", True, f"{survivors}; names, shapes, bits, counts and digest agree")
    return found


# ---- diff ----------------------------------------------------------------------------------------


def diff(
    path: PathOrId,
    other: Annotated[
        str,
        typer.Argument(metavar="OTHER", help="The other one, likewise.", show_default=False),
    ],
    every: All = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 3 if the two differ.")
    ] = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Say how alike two connectomes are, beside chance.

    Options hold for both; owner/name@generation-5 and owner/name@generation-6 name two revisions.
    """
    options = (subfolder, token, cache_dir, local_files_only)
    a, b = (Source(p, revision, *options).connectome() for p in (path, other))
    ids = [describing.identity(c) for c in (a, b)]
    same_base = ids[0]["base_fingerprint"] == ids[1]["base_fingerprint"]
    document: dict[str, Any] = {
        "a": {"path": path, **ids[0]},
        "b": {"path": other, **ids[1]},
        "equal": a == b,
        "same_base": same_base,
    }
    parts: list[str | Facts | Table] = [_both(document)]
    if same_base:
        document["overlap"] = _overlap(a, b)
        title = "parameter" if every else "layer"
        groups = {name: [name] for name in a} if every else describing.layers(a)
        document[f"{title}s"] = _overlaps(a, b, groups)
        parts += [_overlap_facts(document["overlap"]), _overlap_table(title, document[f"{title}s"])]
    else:
        document["only_in_a"] = sorted(a.keys() - b.keys())
        document["only_in_b"] = sorted(b.keys() - a.keys())
        parts.append("They are of different bases, so no weight of one is a weight of the other.")
    code = Code.DIFFERENT if exit_code and not document["equal"] else Code.FINE
    return Result(document, parts, json, code)


def _both(document: dict[str, Any]) -> Table:
    rows = [
        (one, x["path"], share(x["density"]), count(x["num_survivors"]), x["digest"][:12])
        for one, x in (("a", document["a"]), ("b", document["b"]))
    ]
    header = ("", "path", "density", "survivors", "digest")
    return Table(header, rows, frozenset({"path", "digest"}))


def _overlap(a: "Connectome", b: "Connectome") -> dict[str, Any]:
    overlap = a.overlap(b)
    return {
        "jaccard": overlap.jaccard,
        "chance_jaccard": overlap.chance_jaccard,
        "sign_agreement": overlap.sign_agreement,
        "chance_sign_agreement": overlap.chance_sign_agreement,
        "num_shared": overlap.num_shared,
        "expected_shared": overlap.shared.expected,
        "z": overlap.shared.z,
        "p_value": overlap.shared.p_value,
        "num_deaths": a.num_survivors - overlap.num_shared,
        "num_births": b.num_survivors - overlap.num_shared,
    }


def _overlaps(
    a: "Connectome", b: "Connectome", groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    from hf_connectome.connectome import Connectome

    return [
        {"name": name, **_overlap(*(Connectome({n: c[n] for n in group}) for c in (a, b)))}
        for name, group in groups.items()
    ]


def _overlap_facts(overlap: dict[str, Any]) -> Facts:
    agreement = overlap["sign_agreement"]
    signs = f"{share(agreement)} (chance {share(overlap['chance_sign_agreement'])})"
    chance = f"chance {overlap['expected_shared']:,.0f}"
    if overlap["z"] is not None:
        chance += f", z {overlap['z']:+.1f}"
    return Facts(
        [
            ("shared survivors", f"{count(overlap['num_shared'])} ({chance})"),
            ("only in a (deaths)", count(overlap["num_deaths"])),
            ("only in b (births)", count(overlap["num_births"])),
            (
                "Jaccard index",
                f"{share(overlap['jaccard'])} (chance {share(overlap['chance_jaccard'])})",
            ),
            ("sign agreement", None if agreement is None else signs),
        ]
    )


def _overlap_table(title: str, rows: list[dict[str, Any]]) -> Table:
    header = (title, "deaths", "births", "Jaccard", "chance", "signs", "chance ")
    return Table(
        header,
        [
            (
                row["name"],
                count(row["num_deaths"]),
                count(row["num_births"]),
                share(row["jaccard"]),
                share(row["chance_jaccard"]),
                share(row["sign_agreement"]),
                share(row["chance_sign_agreement"]),
            )
            for row in rows
        ],
    )
