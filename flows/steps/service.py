"""Find a service by its name, and act on it as the installation that it belongs to."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from typing import cast

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.store import Store
from blocks.service import Service
from flows.policy.releases.installation import (
    INSTALLATION_KEY,
    Installation,
    check_same,
    claimed,
    founded,
    inherited,
    remembered,
)
from flows.policy.releases.ledger import LEDGERS, ServiceRecord
from flows.runtime.retries import retried_task
from flows.tasks.ledger import document_of, read_record, step_on

_in_hand: ContextVar[Service | None] = ContextVar("service_in_hand", default=None)


def open_service(name: str, *, only_looks: bool = False) -> Service:
    """The service of that name, with a fleet in which only its own installation's replicas are to be seen.

    Refused where another installation has it. Whoever `only_looks` writes nothing, not even the installation's id.
    """
    service = find_service(name)
    document = None if service._block_document_id is None else str(service._block_document_id)  # noqa: SLF001 - Prefect has no other name for it
    record = read_record(service.store, name)
    try:
        installation = know_installation(service.store, name, document, record, only_looks=only_looks)
    except SkyferryError as error:
        if only_looks or not remembered([record]).id:
            raise
        # The ledger knows whose the replicas are, and whoever brings users back need not write that first, nor read it.
        look = know_installation.with_options(retries=0)
        try:
            installation = look(service.store, name, document, record, only_looks=True)
        except Unavailable:
            installation = remembered([record])
        get_logger(__name__).warning("What is known of this installation could not be read or written: %s", error)
    return service.of_installation(installation.id, inherited(record, installation))


@retried_task(task_run_name="know-own-installation")
def know_installation(
    store: Store, service: str, document: str | None, record: ServiceRecord, *, only_looks: bool
) -> Installation:
    """Whose the store is; the first who asks gives it an id, by a conditional put: the one that a ledger remembers."""
    new, url = Installation(id=secrets.token_hex(8), made_at=datetime.now(UTC)), store.url_of(INSTALLATION_KEY)
    known = document_of(store, INSTALLATION_KEY, Installation)
    if not known.id:
        ledgers = (document_of(store, ledger.key, ServiceRecord) for ledger in store.list(LEDGERS))
        old = remembered([record])
        old = old if old.id else remembered(ledgers)
        new = old if old.id else new

    def step(known: Installation) -> Installation:
        own = claimed(founded(known, new), service, document, url=url)
        check_same(record, own, url=url)
        return own

    return step(known) if only_looks else step_on(store, INSTALLATION_KEY, Installation, step)


def find_service(name: str) -> Service:
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
