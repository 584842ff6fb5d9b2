"""Ask what can be rented, and remember how asking for it went."""

from collections.abc import Sequence
from functools import partial

from blocks.ports.market import Market, Offer, Stock
from blocks.ports.store import ConditionalStore
from flows.policy.placement.attempts import ATTEMPTS_KEY, Attempt, Attempts, note
from flows.runtime.limits import STOCK
from flows.runtime.retries import retried_task
from flows.tasks.ledger import document_of, step_on


@retried_task(task_run_name="list-offers")
def list_offers(market: Market, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
    return market.offers(cells, accelerators)


@retried_task(task_run_name="ask-what-is-in-stock", tags=[STOCK])
def ask_for_stock(market: Market, offers: Sequence[Offer]) -> tuple[Stock, ...]:
    return market.stock(offers)


@retried_task(task_run_name="read-earlier-launches")
def read_attempts(records: ConditionalStore) -> Attempts:
    return document_of(records, ATTEMPTS_KEY, Attempts)


@retried_task(task_run_name="note-launch-in-{attempt.cell}")
def note_attempt(records: ConditionalStore, attempt: Attempt) -> None:
    """It says how likely the next one there is; kept for all services of the store."""
    step_on(records, ATTEMPTS_KEY, Attempts, partial(note, attempt=attempt))
