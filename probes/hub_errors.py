"""What goes wrong with the Hugging Face Hub, said in one line: away (try the cache), or refused (try otherwise)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from probes.base import ProbeError

AWAY = (408, 429, 500, 502, 503, 504)
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


class HubAwayError(ProbeError):
    """The Hub cannot be reached, or has trouble of its own: what the cache holds is the best there is."""


class HubMissingError(ProbeError):
    """The Hub shows no such repository to this client."""


class HubConflictError(ProbeError):
    """Somebody else committed in the meantime: look again, then go on."""


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line. Never quotes request headers, which hold the token.

    Raises:
        HubAwayError: no connection, time out, too many requests, a server error, a cut download, offline mode.
        ProbeError: the Hub refuses, or does not have it.
    """
    from huggingface_hub import errors

    # httpx's in release 1 of huggingface_hub, httpx2's in release 2.
    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not exported
    known = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, transport, OSError, ValueError)
    try:
        yield
    except known as error:
        raise _explain(error, repo, revision) from error
    except RuntimeError as error:  # what an upload in a thread of its own ends with
        if not isinstance(error.__cause__, known):
            raise
        raise _explain(error.__cause__, repo, revision) from error


def _explain(error: BaseException, repo: str, revision: str | None) -> ProbeError:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repo, revision)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__, repo, revision)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubAwayError("HF_HUB_OFFLINE is set")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return ProbeError(f"the Hub's cache: {error}; free space or permissions there, or set HF_HOME to another place")
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return ProbeError(f"{repo}: {' '.join(str(error).split())}")
    return HubAwayError(f"{type(error).__name__}: {_first_line(error)}")


def _refused(error: BaseException, repo: str, revision: str | None) -> ProbeError:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    said = f" (the Hub says: {_first_line(error.server_message)})" if error.server_message else ""
    if status in AWAY:
        return HubAwayError(f"it answers {status}{said}")
    if isinstance(error, errors.GatedRepoError):
        return ProbeError(f"{repo} is gated: ask for access on its page, then {LOG_IN}{said}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ProbeError(f"{repo} has no revision {revision!r}: name a branch, a tag or a commit of it")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        # A token that is refused says nothing of the repository.
        kind = HubMissingError if status != 401 or isinstance(error, errors.RepositoryNotFoundError) else ProbeError
        return kind(f"the Hub shows no repository {repo}: check the name; if it is private, {LOG_IN}{said}")
    if status in (409, 412):
        return HubConflictError(f"{repo} changed in the meantime{said}")
    if status == 403:
        return ProbeError(f"your token may not do this with {repo}: {LOG_IN} with one that may{said}")
    return ProbeError(f"the Hub answers {status} for {repo}{said or ': ' + _first_line(error)}")


def _first_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")
