"""Tell Prefect what has happened, so that people and automations can act on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect.events import emit_event
from prefect.logging import get_logger

from flows.policy.releases.events import Event


def _to_prefect(event: Event) -> None:
    emit_event(
        event.name,
        resource={"prefect.resource.id": event.resource, "prefect.resource.name": event.resource.split(".", 2)[-1]},
        related=[
            {"prefect.resource.id": resource, "prefect.resource.role": role} for role, resource in event.related.items()
        ],
        payload=dict(event.payload),
        id=event.id,
    )


_tell: ContextVar[Callable[[Event], None]] = ContextVar("tell", default=_to_prefect)


def emit(*events: Event) -> None:
    """Told in the background; what cannot be told is logged, for a run does its work whoever listens."""
    for event in events:
        try:
            _tell.get()(event)
        except Exception:  # noqa: BLE001 - whatever it is, see above
            get_logger(__name__).warning("%s of %s could not be told.", event.name, event.resource, exc_info=True)


@contextmanager
def telling(tell: Callable[[Event], None]) -> Iterator[None]:
    """Have events told to somebody else than Prefect, as in tests."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)
