"""wire: draw a connectome without training; and the table of degrees that shows what was drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_connectome.cli import describing
from hf_connectome.cli.options import Json
from hf_connectome.cli.output import Facts, Result, Table, count, share
from hf_connectome.cli.sizes import size
from hf_connectome.errors import ConfigError

_Target = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder for the connectome.", show_default=False)
]
_Wiring = Annotated[
    str, typer.Option(help="Name, or with options as 'brf:r=0.3'; docs/WIRINGS.md has the table.")
]
_Pattern = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DENSITY",
        help="Density of parameters by name or by a regular expression of the end of names; may be "
        "repeated.",
    ),
]
_Model = Annotated[
    str,
    typer.Option(
        help="Model type of transformers (gpt2, llama: no download), or a folder or Hub id with a "
        "config.json."
    ),
]
_Scope = Annotated[
    str,
    typer.Option(
        help="What is wired: all-matrices, all-linear, body, embeddings, or a regular expression "
        "of module names."
    ),
]


def wire(
    to: _Target,
    wiring: _Wiring = "random",
    density: Annotated[
        float | None,
        typer.Option(
            help="Survivors over weights, in (0, 1]; by default 0.25, or that of a graph."
        ),
    ] = None,
    density_pattern: _Pattern = None,
    model: _Model = "gpt2",
    model_overrides: Annotated[
        str | None, typer.Option(help="Config values to change, as 'n_layer=4,n_embd=128'.")
    ] = None,
    scope: _Scope = "all-matrices",
    seed: Annotated[int, typer.Option(help="Same seed, same connectome.")] = 0,
    codec: Annotated[
        str, typer.Option(help="plain, zstd (smaller) or context (smallest).")
    ] = "plain",
    json: Json = False,
) -> Result:
    """Draw a connectome for a model, without training."""
    from hf_connectome.adapter import draw
    from hf_connectome.codecs import check_codec
    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.fresh import ModelArguments, fresh_model
    from hf_connectome.storage import WEIGHTS_FILE, write
    from hf_connectome.wirings import make_wiring

    check_codec(codec)
    config = ConnectomeConfig(
        target_modules=scope,
        wiring=wiring,
        density=make_wiring(wiring).default_density() if density is None else density,
        density_pattern=_pattern(density_pattern or ()),
        reset="sign_constant",
        seed=seed,
    )
    arguments = ModelArguments(model, model_overrides)
    host = fresh_model(arguments, tokenizer=None, block_size=1, seed=seed)
    connectome = draw(host, config)
    write(connectome, to, codec=codec)
    document: dict[str, Any] = {
        "path": str(to),
        **describing.identity(connectome),
        "file": size(connectome, to / WEIGHTS_FILE),
        "densities": connectome.densities(),
    }
    return Result(document, [_wired(document)], json)


def _wired(document: Mapping[str, Any]) -> Facts:
    weights = f"{count(document['num_survivors'])} of {count(document['num_weights'])}"
    return Facts(
        [
            ("to", document["path"]),
            ("architecture", document["architecture"]),
            ("wiring", f"{document['wiring']}, seed {document['seed']}"),
            ("survivors", f"{weights} weights in {document['num_parameters']} parameters"),
            ("density", share(document["density"])),
            ("digest", document["digest"]),
            ("next", f"hf-connectome show {document['path']} --degrees"),
        ]
    )


def _pattern(pairs: Sequence[str]) -> dict[str, float]:
    pattern = {}
    for pair in pairs:
        key, _, text = pair.rpartition("=")
        try:
            pattern[key] = float(text)
        except ValueError:
            key = ""
        if not key:
            raise ConfigError(f"--density-pattern is {pair!r}; expected NAME=DENSITY, as wte=0.5.")
    return pattern


def degree_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of ``describing.degrees``: in-degrees of outputs, out-degrees of inputs."""
    header = ["parameter"]
    for side in ("in", "out"):
        header += [f"{side}-degree", f"{side} least", f"{side} most", f"{side} sd", f"{side} none"]
    return Table(
        header,
        [
            (name, *_cells(found["into_outputs"]), *_cells(found["from_inputs"]))
            for name, found in rows.items()
        ],
    )


def _cells(spread: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{spread['mean']:.1f}",
        count(spread["least"]),
        count(spread["most"]),
        f"{spread['deviation']:.1f}",
        count(spread["num_unlinked"]),
    )
