"""What to say of a request to the hub that failed: one line with what to do, without signed URLs."""

import errno
from http import HTTPStatus
from typing import Any

from moe4.errors import HubError

NOT_ALLOWED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
MAY_PASS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
LONGEST_REASON = 160


class HubUnreachableError(HubError):
    """The hub does not answer, or may not be asked: a copy in its cache can stand in for it."""


def explain(error: Exception, repository: str, revision: str, what: str = "") -> HubError:
    """Return the line for whatever a library raised when it asked for a repository, or for `what` in it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub, place = constants.ENDPOINT, f"{what} of {repository}" if what else repository
    if isinstance(error, HubError):
        return error
    if isinstance(error, HFValidationError):
        return HubError(
            f"{repository} is not the id of a repository; expected OWNER/NAME, as the hub shows it"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(
            f"{place} is neither a folder here nor in the hub's cache {constants.HF_HUB_CACHE}, and "
            "HF_HUB_OFFLINE forbids asking the hub; unset it, or give a folder"
        )
    if isinstance(error, GatedRepoError):
        return HubError(f"{repository} is gated: {_how_to_open(hub, repository)}")
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repository} has no revision {revision}; give a branch, tag or commit that "
            f"{hub}/{repository}/commits shows"
        )
    if isinstance(error, DisabledRepoError):
        return HubError(f"{repository} has been disabled on the hub; give another copy of it")
    if isinstance(error, RepositoryNotFoundError) or (not what and status_of(error) == HTTPStatus.NOT_FOUND):
        access = "a token that may read it" if _has_token() else "HF_TOKEN, if it is private"
        return HubError(
            f"{repository} is neither a folder here nor a repository on the hub {hub}; "
            f"check the spelling, or set {access}"
        )
    return _explain_answer(error, hub, repository, place)


def _explain_answer(error: Exception, hub: str, repository: str, place: str) -> HubError:
    """Return the line for an answer's status, or for none."""
    status = status_of(error)
    if status is None:
        why = "is not a folder here, and" if place == repository else "cannot be read:"
        return HubUnreachableError(
            f"{place} {why} the hub {hub} does not answer ({_reason(error)}); check the network, and "
            "HF_ENDPOINT if it is set"
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return HubError(
            f"{place} cannot be read: the hub {hub} refuses the token; set HF_TOKEN to a valid one"
        )
    if status == HTTPStatus.FORBIDDEN:
        return HubError(f"{place} may not be read: {_how_to_open(hub, repository)}")
    if status == HTTPStatus.NOT_FOUND:
        return HubError(f"{place} is not on the hub {hub}; check the name and the revision")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return HubUnreachableError(
            f"{place} cannot be read: the hub {hub} refuses more requests for now (429); wait some minutes"
            + ("" if _has_token() else ", or set HF_TOKEN for a higher limit")
        )
    return HubUnreachableError(f"{place} cannot be read: the hub {hub} answers {status}; try again later")


def may_pass(error: Exception) -> bool:
    """Say whether a request that failed so may succeed when it is sent again."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = status_of(error)
    if status is None:  # no answer, or one that broke off
        is_broken_off = isinstance(error, HTTPError | ConnectionError | TimeoutError)
        return is_broken_off or is_of_session(error) or (isinstance(error, OSError) and error.errno is None)
    if status in NOT_ALLOWED or status == HTTPStatus.NOT_FOUND:
        return was_redirected(error)  # a signed URL has expired: the hub signs another
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in MAY_PASS


def is_of_session(error: BaseException | None) -> bool:
    """Say whether another thread closed the session that the library shares among them.

    It closes it whenever a thread cannot connect; a request of another thread then finds its socket gone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            return True
        if isinstance(error, RuntimeError) and "client has been closed" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the answer that an error is about; None if there was none."""
    response: Any = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def was_redirected(error: Exception) -> bool:
    """Say whether it was not the hub itself that answered, but a place it had sent us to."""
    response: Any = getattr(error, "response", None)
    return bool(response is not None and response.history)


def _how_to_open(hub: str, repository: str) -> str:
    accept = f"accept its conditions at {hub}/{repository}"
    if _has_token():
        return f"{accept} with the account of your token, which must be allowed to read gated repositories"
    return f"{accept}, then set HF_TOKEN to a token of that account"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _reason(error: Exception) -> str:
    """Return why there was no answer, without the address, which may be signed."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return type(error).__name__ if "://" in text else text[:LONGEST_REASON]
