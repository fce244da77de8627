"""What the Hub's refusals mean: each gets a message of its own and the way out.

PEFT says "Can't find 'adapter_config.json'" to all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hf_connectome.errors import FormatError, HubError, some


@contextlib.contextmanager
def hub_errors_named(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    absent_too: str = "",
    after: str = "",
    after_loss: str | None = None,
) -> Iterator[None]:
    """Turn what the client raises into a HubError that says what is wrong and the way out.

    Args:
        repo_id: what was asked for.
        revision: at which revision, if any.
        token: with which token, as in huggingface_hub.
        absent_too: what the message adds where there is no such repository, or none to be had.
        after: what it adds always.
        after_loss: what stands in its place where the connection was lost, so that nobody knows
            what the Hub did last.
    """
    from huggingface_hub import errors

    try:
        yield
    except HubError:
        raise
    except errors.HFValidationError as error:
        here = " is no folder here and" if absent_too else ""
        raise FormatError(
            f"{repo_id!r}{here} cannot be a Hub id ('name' or 'owner/name'). Check it."
        ) from error
    except Exception as error:
        cause = _unwrapped(error)
        text = _explain(cause, repo_id, revision, token)
        if text is None:
            raise
        absent = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
        is_absent = type(cause) is errors.RepositoryNotFoundError or isinstance(cause, absent)
        if after_loss is not None and _is_lost_connection(cause):
            after = after_loss
        raise HubError(text + (absent_too if is_absent else "") + after) from error


def _unwrapped(error: Exception) -> Exception:
    """Return the refusal that the client hides in an error of its own.

    It turns to the cache when the Hub is busy, and wraps what goes wrong with an upload.
    """
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError):
        return cause if isinstance(cause, errors.HfHubHTTPError) else error
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):
        known = isinstance(cause, errors.HfHubHTTPError) or _is_lost_connection(cause)
        return cause if known else error
    return error


def _explain(
    error: Exception, repo_id: str, revision: str | None, token: str | bool | None
) -> str | None:
    """Say what a failure of the client means; None for errors that are not the Hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id!r} is gated: its owner grants access one by one. Ask on its page, then log "
            "in (hf auth login) or pass token=…"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _missing(repo_id, token)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id!r} has no revision {revision!r}.{_revisions(repo_id, token)}"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, repo_id)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so the Hub is not asked for {repo_id!r}. Unset it."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{repo_id!r} is not in the cache, and the Hub could not be asked (offline, or no "
            f"connection). Get it while online: hf download {repo_id}."
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return (
            f"{repo_id!r} needs a token and none is saved. Log in (hf auth login), or pass token=…"
        )
    if _is_lost_connection(error):
        return (
            f"the connection to the Hub was lost at {repo_id!r}: "
            f"{str(error).splitlines()[0].rstrip('. ')}. Try the same again; what has arrived is "
            "used."
        )
    return None


def _missing(repo_id: str, token: str | bool | None) -> str:
    """Tell a repository that is not there from one that this user may not see."""
    from huggingface_hub import get_token

    kind = _other_kind(repo_id, token)
    if kind is not None:
        return (
            f"{repo_id!r} is a {kind} on the Hub, not a model repository; it holds no connectome."
        )
    if token is False or (token is None and get_token() is None):
        return (
            f"the Hub shows no repository {repo_id!r} to a visitor without a token: it does not "
            "exist, or it is private. Check the name, or log in (hf auth login, or token=…)."
        )
    return (
        f"the Hub has no repository {repo_id!r}, or it is private and this token may not see it. "
        "Check the name, and by `hf auth whoami` who you are."
    )


def _other_kind(repo_id: str, token: str | bool | None) -> str | None:
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):  # only to say more about an error that there is anyway
        for kind in ("dataset", "space"):
            if HfApi(token=token).repo_exists(repo_id, repo_type=kind):
                return kind
    return None


def _revisions(repo_id: str, token: str | bool | None) -> str:
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):  # likewise
        refs = HfApi(token=token).list_repo_refs(repo_id)
        return f" It has {some([ref.name for ref in (*refs.branches, *refs.tags)], 10)}."
    return ""


def _explain_status(error: Any, repo_id: str) -> str:
    status = getattr(error.response, "status_code", None)
    meanings = {
        401: "the token is not valid. Log in anew (hf auth login)",
        403: "this token may not do that there. Use one with write access, or another namespace",
        409: "there is already something of that name. Choose another",
        412: "another push came first, and going on would have undone it. Look at the repository, "
        "then push again",
        429: "too many requests. Wait and try again",
    }
    if status is not None and status >= 500:
        meaning = "the Hub has trouble. Try again later"
    else:
        meaning = meanings.get(status or 0, "the Hub refused")
    said = getattr(error, "server_message", None)
    return f"{repo_id!r}: {meaning} (HTTP {status}{': ' + said if said else ''})."


def _is_lost_connection(error: Exception) -> bool:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    lost = {"TransportError", "ConnectionError", "TimeoutError", "RequestException"}
    return bool(kinds & lost) or "Consistency check failed" in str(error)
