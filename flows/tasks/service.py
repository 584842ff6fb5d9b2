"""Find a service by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import cast

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from blocks.errors import Refused
from blocks.service import Service

_in_hand: ContextVar[Service | None] = ContextVar("service_in_hand", default=None)


def open_service(name: str) -> Service:
    """The service of that name: one handed over with `serving`, or else the Service block that is stored under it."""
    if (given := _in_hand.get()) is not None and given.name == name:
        return given
    try:
        found = cast("Service", Service.load(name))  # in a sync caller, load returns the block and no coroutine
    except ValueError as error:
        raise Refused(f"there is no Service block {name!r}; there is {_known()}") from error
    if found.name != name:
        raise Refused(f"the Service block {name!r} is named {found.name!r} inside; give it one name")
    return found


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """Run flows on a service that no block document describes, from Python."""
    token = _in_hand.set(service)
    try:
        yield
    finally:
        _in_hand.reset(token)


def _known() -> str:
    with get_client(sync_client=True) as client:
        try:
            documents = client.read_block_documents_by_type(Service.get_block_type_slug(), include_secrets=False)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            documents = []  # nobody has registered the block type yet
    return ", ".join(repr(document.name) for document in documents) or "none at all: register one first"
