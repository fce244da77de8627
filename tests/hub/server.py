"""The server: who may do what, and one thread a connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal

from hub import accounts, reading, writing  # noqa: F401  (they declare the routes)
from hub.faults import Fault, Faults
from hub.http import Answer, Request, route
from hub.repository import File, RefusedError, Repository

if TYPE_CHECKING:
    from pathlib import Path


class _LostConnectionError(Exception):
    """The connection ends here, as if a cable had been pulled."""


class Hub:
    """A Hub on this machine, in memory.

    Modelled as the client of huggingface_hub 2.4 and the Hub's own tests expect it: accounts by
    token; model, dataset and space repositories, private, gated, with branches and tags; commits
    that land whole or not at all, refused with 412 when they name a parent that is no longer the
    head; large files by LFS or, with ``xet_store``, by Xet; downloads in ranges from a second host
    name, as from the Hub's CDN; the search for models; the check of a card's metadata.

    Not modelled: pull requests, git itself, moving and duplicating, LFS in several parts, quotas,
    scans, pages of a long listing, and whatever the website does with a card.

    Example:
        >>> with Hub(tokens={"hf_alice": "alice"}) as hub:
        ...     hub.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        tokens: Mapping[str, str] | None = None,
        organisations: Mapping[str, Iterable[str]] | None = None,
        *,
        xet_store: Path | None = None,
        port: int = 0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Open the port; requests are answered after ``start``.

        Args:
            tokens: token -> user.
            organisations: namespace -> users who may write there, besides each user's own.
            xet_store: folder for large files that come by Xet; None leaves LFS alone.
            port: 0 takes a free one.
            report: gets one line a request.
        """
        self.tokens = dict(tokens or {})
        self.organisations = {name: set(users) for name, users in (organisations or {}).items()}
        self.xet_store = xet_store
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        """Large files sent by LFS, by SHA-256; in a repository only once a commit names them."""
        self.on_cdn: dict[str, File] = {}
        self.log: list[tuple[str, str, int, str | None]] = []
        """Method, target, status and user of every request answered."""
        self.faults, self.lock, self.report = Faults(), threading.RLock(), report
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn_url(self) -> str:
        """The same server by another name: a client must not send its token there."""
        return f"http://localhost:{self._server.server_port}"

    def start(self) -> Hub:
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse every connection from now on; nothing happens if it has stopped before."""
        if self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def fail(
        self,
        pattern: str,
        *,
        method: str | None = None,
        times: int | None = 1,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        mangle: Callable[[bytes], bytes] | None = None,
        drop: Literal["request", "answer"] | None = None,
    ) -> None:
        """Let the next requests to a target that ``pattern`` is found in fail.

        Args:
            pattern: regular expression.
            method: only these; by default all, and HEAD only if it is answered by ``status``.
            times: how many; None for all until ``heal``.
            status: answer this, before anything is done.
            headers: of that answer.
            mangle: what becomes of the answer's body, which arrives complete.
            drop: the connection is lost half-way through the request's body, so nothing is done;
                or through the answer's body, when all is done.
        """
        self.faults.add(Fault(pattern, method, times, status, headers or {}, mangle, drop))

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    # ---- who may do what -------------------------------------------------------------------------

    def user(self, request: Request) -> str:
        if request.user is None:
            raise RefusedError(401, "Invalid username or password.")
        return request.user

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user is not None and (
            user == namespace or user in self.organisations.get(namespace, ())
        )

    def may_see(self, user: str | None, repository: Repository) -> bool:
        return not repository.private or self.may_write(user, repository.namespace)

    def visible(self, request: Request, kinds: str, id: str) -> Repository:
        """Return a repository; one that the user may not see is as if it did not exist."""
        repository = self.repositories.get((kinds.removesuffix("s"), id))
        if repository is None or not self.may_see(request.user, repository):
            status = 401 if request.user is None else 404
            raise RefusedError(status, "Repository not found", "RepoNotFound")
        return repository

    def open(self, request: Request, kinds: str, id: str) -> Repository:
        """Return a repository whose files the user may read."""
        repository, user = self.visible(request, kinds, id), request.user
        may = self.may_write(user, repository.namespace) or user in repository.granted
        if repository.gated and not may:
            status = 401 if user is None else 403
            raise RefusedError(
                status, f"Access to {repository.kind} {id} is restricted.", "GatedRepo"
            )
        return repository

    def writable(self, request: Request, kinds: str, id: str) -> Repository:
        repository = self.visible(request, kinds, id)
        if not self.may_write(self.user(request), repository.namespace):
            raise RefusedError(403, f"Forbidden: you must have write access to {id}")
        return repository


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: object) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)  # type: ignore[arg-type]

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:  # type: ignore[no-untyped-def]
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the connections that clients keep for later: a server that is gone has none."""
        for connection in list(self._open):
            _hang_up(connection)

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """Say nothing: a client that hangs up is part of the tests."""


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was first


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; ``Hub.log`` has it."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_LostConnectionError, ConnectionError):
            self.close_connection = True

    def _answer(self) -> None:
        fault = self.hub.faults.next(self.command, self.path)
        body = self._read_body(cut=fault is not None and fault.drop == "request")
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        known = self.hub.tokens.get(token) if scheme == "Bearer" else None
        request = Request(self.command, self.path, self.headers, body, known)
        try:
            if fault is not None and fault.status is not None:
                raise RefusedError(fault.status, "this failed on purpose", headers=fault.headers)
            if token and known is None:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            answer = route.answer(self.hub, request)
        except RefusedError as refused:
            answer = Answer.json(refused.body, refused.status, refused.headers)
        self._send(request, answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def _read_body(self, *, cut: bool) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size // 2 if cut else size)
        if cut:
            _hang_up(self.connection)
            raise _LostConnectionError
        return body

    def _send(self, request: Request, answer: Answer, fault: Fault | None) -> None:
        body, hub = answer.body, self.hub
        if fault is not None and fault.mangle is not None:
            body = fault.mangle(body)
        hub.log.append((request.method, request.target, answer.status, request.user))
        if hub.report is not None:
            hub.report(f"{request.method} {request.target} {answer.status} {request.user}")
        self.send_response(answer.status)
        headers = {"Content-Type": "application/octet-stream", **answer.headers}
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        if fault is not None and fault.drop == "answer":
            self.wfile.write(body[: len(body) // 2])
            _hang_up(self.connection)
            raise _LostConnectionError
        self.wfile.write(body)
