"""What an HTTP status says, whoever answers with it: whether the same may work later, and what helps where it may not.

Stores have codes of their own beside it, each in spellings of its own, or none at all, as where a proxy answers in a
store's place: so the status decides, and a code only adds what the status leaves open.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

from blocks.cleaning import cleaned
from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.http.waits import told_to_wait

PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
"""Among the answers that begin with 4."""
LASTING: Mapping[int, str] = {
    HTTPStatus.NOT_IMPLEMENTED: "it does not know this operation, or something that was asked with it; look into "
    "docs/mirroring.md for the settings of such a store",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "correct the endpoint: what answers there is no store",
    HTTPStatus.INSUFFICIENT_STORAGE: "free space in the store",
}
"""Among those that begin with 5, which are the server's fault and otherwise pass."""
NEXT_STEPS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "correct the block's settings",
    HTTPStatus.UNAUTHORIZED: "correct the credentials",
    HTTPStatus.FORBIDDEN: "allow it to these credentials",
    HTTPStatus.NOT_FOUND: "create the bucket, or mirror the model again",
    HTTPStatus.METHOD_NOT_ALLOWED: "correct the endpoint: what answers there does not take this operation",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "give the proxy's credentials in its variable, or go around it",
    HTTPStatus.LENGTH_REQUIRED: "correct the endpoint: a proxy before the store takes bodies apart",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise what the store, or a proxy before it, takes in one request",
    HTTPStatus.REQUEST_URI_TOO_LONG: "mirror a model with shorter names of files",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "mirror a model with shorter names of files",
    **LASTING,
}
REDIRECTED = "set the region, or the address, that the bucket is at"


def may_pass(status: int) -> bool:
    """Is it worth asking again?"""
    return status in PASSING or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in LASTING)


NOT_THE_STORE = (
    "what answered is not the store, but something before it, or in its place; see that the store runs there"
)
"""Of a 404 without any word of a store's, and of a good status with something else than a store says: a proxy whose
store is down must not pass for a store that has nothing, nor for one that has done what was asked.
"""
NOT_UNDERSTOOD = (AttributeError, KeyError, TypeError, ValueError)
"""What a store's library raises where something else than the store has answered it."""


def translation(
    said: str,
    status: int,
    headers: Mapping[str, str],
    *,
    words: str = "",
    step: str | None = None,
    passes: bool = False,
    later: str = "try again later",
) -> SkyferryError:
    """What an answer means: `said` names the thing and the operation, `words` the code or the text that came with it.

    `passes` is for a code that says of a status which leaves it open that asking again may help, and `step` for one
    that knows better what helps.
    """
    words = f"{status} {cleaned(words)}".strip()
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        later, passes = NOT_THE_STORE, True
    if may_pass(status) or passes:
        return Unavailable(f"{said}: {words}; {later}", after_seconds=told_to_wait(headers, datetime.now(UTC)))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        step = step or REDIRECTED
    return Refused(f"{said}: {words}; {step or NEXT_STEPS.get(status, 'correct the settings')}")
