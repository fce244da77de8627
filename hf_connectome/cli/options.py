"""Arguments that several commands share, and what they name: a folder or a Hub repository."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_connectome.connectome import Connectome

PathOrId = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Folder, or Hub id owner/name; owner/name@REVISION names a revision too.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag (generation-3) or commit of a Hub repository."),
]
Subfolder = Annotated[
    str | None, typer.Option(help="Where in the folder or repository the connectome is.")
]
Token = Annotated[
    str | None,
    typer.Option(help="Hub token; by default the one of `hf auth login`.", show_default=False),
]
CacheDir = Annotated[
    Path | None, typer.Option(help="Where downloads go, in place of the usual cache.")
]
LocalFilesOnly = Annotated[
    bool, typer.Option("--local-files-only", help="Take what is in the cache and ask nobody.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
All = Annotated[bool, typer.Option("--all", help="Give one line for every parameter.")]


@dataclass(frozen=True)
class Source:
    """Where a connectome is and how to get it."""

    path: str
    revision: str | None = None
    subfolder: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    local_files_only: bool = False

    def __str__(self) -> str:
        return self.path

    def folder(self, also: "Sequence[str]" = ()) -> Path:
        """Return its folder on this machine, fetched if it is on the Hub."""
        from hf_connectome.hub import fetch

        path, revision = self._split()
        return fetch(
            path,
            subfolder=self.subfolder,
            revision=revision,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
            also=also,
        )

    def connectome(self) -> "Connectome":
        """Read it, all of it checked."""
        from hf_connectome.storage import read

        return read(self.folder())

    @property
    def name(self) -> str:
        """The folder or Hub id, without a revision."""
        return self._split()[0]

    def _split(self) -> tuple[str, str | None]:
        path, at, named = self.path.rpartition("@")
        if not at or Path(self.path).exists():
            return self.path, self.revision
        if self.revision not in (None, named):
            raise ConfigError(
                f"{self.path!r} names the revision {named!r}, --revision {self.revision!r}. Give "
                "one of them."
            )
        return path, named
