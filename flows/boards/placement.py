"""Where the replicas of a release run, or would run, what that costs, and what each other offer would have cost."""

from collections.abc import Mapping, Sequence

from blocks.ports.market import Offer
from flows.boards.markdown import escaped, lines, listed, page, section, table
from flows.boards.numbers import count, dollars, percent, seconds
from flows.boards.shown import Cell, Page, Table
from flows.policy.placement.plan import Considered, Placement, dollars_per_hour
from flows.policy.releases.ledger import Release
from flows.tasks.fleet import Started

SHOWN_OFFERS = 200
"""Of the best; a market may have thousands, and an artifact is no place for them."""


def plan_board(repo: str, replicas: int, needs: Sequence[str], plan: Placement) -> Page:
    """Where the replicas of a model would go: nothing is started yet. `needs`: the arithmetic of one replica."""
    would = listed(
        (offer, f"{taken} of {replicas}, {dollars(offer.dollars_per_hour)} an hour each")
        for offer, taken in _taken(plan)
    )
    return Page(
        f"Where {replicas} replicas of {escaped(repo)} would run",
        page(
            f"# Where {replicas} replicas of {escaped(repo)} would run",
            f"**{len(plan.placed)} would be started, and the fleet would cost {dollars(plan.dollars_per_hour)} an "
            f"hour**: nothing is started yet.",
            section("Where", would),
            section("What a replica needs", lines(needs)),
        ),
    )


def placement_board(
    release: Release,
    wanted: int,
    needs: Sequence[str],
    started: Sequence[Started],
    no_capacity: Mapping[Offer, str],
) -> Page:
    """Which replicas are ready, and which cells had no capacity; each offer is in `offers_table`."""
    cost = dollars_per_hour([one.replica for one in started])
    rows = (
        (
            one.replica.name,
            one.replica.cell,
            one.replica.address,
            "ran already" if one.was_running else seconds(one.seconds),
            dollars(one.replica.dollars_per_hour),
        )
        for one in started
    )
    return Page(
        f"Where the replicas of {escaped(release.id)} run, and why there",
        page(
            f"# Replicas of {escaped(release.id)}",
            f"**{len(started)} of {wanted} are ready**, in slot {release.slot}, "
            f"{'at a price that nobody has named' if cost is None else f'for {dollars(cost)} an hour'}.",
            section("Where", table(("replica", "cell", "address", "ready after", "$ an hour"), rows, text_columns=3)),
            section("No capacity", listed(no_capacity.items())),
            section("What a replica needs", lines(needs)),
        ),
    )


def offers_table(plan: Placement) -> Table:
    """Every offer, the best first, with what is to be expected of it and why it was taken or not."""
    shown = plan.considered[:SHOWN_OFFERS]
    more = len(plan.considered) - len(shown)
    taken = sum(one.taken > 0 for one in plan.considered)
    return Table(
        f"{taken} of {count(len(plan.considered))} offers are taken; the best come first, each with its rent and, in "
        f"brackets, with the expected cost of starting" + (f"; {count(more)} more are not shown" if more else ""),
        [_offer(one) for one in shown],
    )


def _offer(one: Considered) -> dict[str, Cell]:
    rent, with_starting = one.offer.dollars_per_hour, one.dollars_per_hour
    return {
        "offer": str(one.offer),
        "replicas": one.taken or "",
        "$ an hour": dollars(rent) + (f" ({dollars(with_starting)})" if with_starting not in {None, rent} else ""),
        "chance": percent(one.chance),
        "why": one.why if one.stock.words in one.why else f"{one.why}; in stock: {one.stock.answer}, {one.stock.words}",
    }


def _taken(plan: Placement) -> list[tuple[Offer, int]]:
    return [(one.offer, one.taken) for one in plan.considered if one.taken]
