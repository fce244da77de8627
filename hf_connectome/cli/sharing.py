"""push, pull, search: the Hub."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_connectome.cli import describing
from hf_connectome.cli.options import (
    CacheDir,
    Json,
    LocalFilesOnly,
    Revision,
    Source,
    Subfolder,
    Token,
)
from hf_connectome.cli.output import Facts, Result, Table, count, share
from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


def push(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Connectome's folder, run with generation-* folders (all go, in order), or "
            "trained checkpoint with a connectome/ folder.",
            show_default=False,
        ),
    ],
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO", help="Hub id owner/name; created if need be.", show_default=False
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a repository that is created here."),
    ] = None,
    tag: Annotated[
        bool, typer.Option("--tag/--no-tag", help="Tag each commit generation-<g>.")
    ] = True,
    branch: Annotated[str | None, typer.Option(help="By default main.", show_default=False)] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence id for the card, such as apache-2.0.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Output folder of recipes/inherit.py, for the card.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id of the data set that the results are of.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint: Hub id of its connectome, owner/name@revision."),
    ] = None,
    token: Token = None,
    json: Json = False,
) -> Result:
    """Publish a connectome, a run or a sparse checkpoint."""
    from hf_connectome.publishing import publish

    pushed = publish(
        path,
        repo,
        private=private,
        token=token,
        branch=branch,
        tag=tag,
        license=license,
        results=results,
        dataset=dataset,
        parent=parent,
    )
    document = {"path": path, "pushed": [asdict(one) for one in pushed]}
    rows = [(one.url, one.tag, one.commit[:12]) for one in pushed]
    table = Table(("repository", "tag", "commit"), rows, frozenset({"tag", "commit"}))
    return Result(document, [table], json)


_Repository = Annotated[
    str,
    typer.Argument(
        metavar="REPO", help="Hub id owner/name, or owner/name@REVISION.", show_default=False
    ),
]
_NewFolder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="New folder; by default ./name.", show_default=False),
]


def pull(
    repo: _Repository,
    to: _NewFolder = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Fetch a connectome into a new folder and check it."""
    target = to or Path(repo.partition("@")[0].rstrip("/").rpartition("/")[2])
    source = Source(repo, revision, subfolder, token, cache_dir, local_files_only)
    connectome, files = _fetch_into(target, source)
    document = {
        "repo": repo,
        "path": str(target),
        "files": files,
        **describing.identity(connectome),
    }
    survivors = f"{count(connectome.num_survivors)} (density {share(connectome.density)})"
    facts = Facts(
        [
            ("pulled", f"{repo} into {target}"),
            ("files", ", ".join(files)),
            ("survivors", survivors),
            ("digest", f"{connectome.digest} (checked)"),
            ("next", f"hf-connectome load-test {target}"),
            ("", f'ConnectomeModel.from_pretrained("{target}", seed=0)'),
        ]
    )
    return Result(document, [facts], json)


def _fetch_into(target: Path, source: Source) -> tuple["Connectome", list[str]]:
    """Copy what a connectome's repository holds into a new folder, once it was checked."""
    from hf_connectome.cards import CARD_FILE, FIGURE_FILE
    from hf_connectome.hub import TOKENIZER_FILES, with_origin
    from hf_connectome.provenance import PROVENANCE_FILE
    from hf_connectome.storage import (
        CONFIG_FILE,
        WEIGHTS_FILE,
        atomic_folder,
        read,
        refused_writes_named,
        write_config,
    )

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} is there already; expected a new or empty folder, so that nothing of yours "
            "is overwritten. Name another one: hf-connectome pull REPO DIR"
        )
    also = (*TOKENIZER_FILES, CARD_FILE, FIGURE_FILE, PROVENANCE_FILE)
    folder = source.folder(also)
    connectome = with_origin(read(folder), source.name, folder)
    wanted = {f for pattern in (CONFIG_FILE, WEIGHTS_FILE, *also) for f in folder.glob(pattern)}
    with refused_writes_named(target), atomic_folder(target) as scratch:
        for file in wanted:
            shutil.copyfile(file, scratch / file.name)
        write_config(connectome, scratch)
    return connectome, sorted(file.name for file in wanted)


def search(
    query: Annotated[
        str | None, typer.Argument(help="Part of the repository's name.", show_default=False)
    ] = None,
    author: Annotated[str | None, typer.Option(help="User or organisation.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most repositories to list.")] = 20,
    token: Token = None,
    json: Json = False,
) -> Result:
    """List connectomes on the Hub, the last changed first."""
    from hf_connectome.hub import search as search_hub

    found = search_hub(query, author=author, limit=limit, token=token)
    document = {"query": query, "author": author, "found": [asdict(one) for one in found]}
    rows = [
        (one.repo_id, (one.last_modified or "-")[:10], one.downloads, "yes" if one.private else "")
        for one in found
    ]
    table = Table(
        ("repository", "changed", "downloads", "private"), rows, frozenset({"changed", "private"})
    )
    nothing = "No repository of that kind carries the tag 'connectome'."
    return Result(document, [table if rows else nothing], json)
