"""Do as many replicas of the live release answer as were asked for, and if not, what is to be done now?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from blocks.ports.engine import Load
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Server
from flows.policy.releases.ledger import Release, ServiceRecord, Shortage

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=15)
"""Between two tries, each pause twice as long as the one before: a cell that has said no gives nothing a minute later.
"""


@dataclass(frozen=True)
class Standing:
    """How the live release stands beside what was asked for."""

    release: Release
    wanted: int
    serving: tuple[Replica, ...]
    """Those that requests can reach, or that somebody holds back on purpose."""

    @property
    def missing(self) -> int:
        return max(0, self.wanted - len(self.serving))

    @property
    def words(self) -> str:
        return f"{len(self.serving)} of the {self.wanted} replicas of {self.release.id} that were asked for serve"


def asked_for(record: ServiceRecord, by_day: int) -> int:
    """How many replicas of the live release are to run now; nobody can ask for more than `by_day`."""
    return by_day if record.wanted is None else min(record.wanted, by_day)


def how_it_stands(release: Release, wanted: int, replicas: Sequence[Replica], servers: Sequence[Server]) -> Standing:
    """One that drains was taken out by a gate or by a flow that stops it, and is not put back behind their backs.

    Where no other one is up, users come first: whoever took it out may have been killed, and would leave them nothing.
    """
    states = {server.address: server.state for server in servers if server.slot == release.slot}
    own = [replica for replica in replicas if replica.release == release.id]
    up = tuple(replica for replica in own if states.get(replica.address) == "up")
    serving = tuple(r for r in own if states.get(r.address, "down") != "down") if up else ()
    return Standing(release, wanted, serving)


def next_try_at(shortage: Shortage | None) -> datetime | None:
    """When to try again to end it; None where nothing was tried yet, so at once."""
    if shortage is None:
        return None
    doublings = min(shortage.tries - 1, 10)  # what is asked for is tried for weeks, and numbers have an end
    return shortage.last_try_at + min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE)


def is_over(shortage: Shortage, now: datetime) -> bool:
    """Whether what was brought back has served for long enough; an engine that gets ready and dies again would not.

    Else each minute would start it anew, on a machine that is paid for each time.
    """
    return now - shortage.last_try_at >= LONGEST_PAUSE


def who_hangs(
    silent: Sequence[Replica], before: Mapping[str, Load | None], after: Mapping[str, Load | None]
) -> tuple[Replica, ...]:
    """Of those that twice gave no completion: the ones whose own counts of tokens did not move meanwhile.

    One that reads or generates for others is busy, and so is one that answers and does not count. One that tells
    nothing at all is taken for what it looks like. `before` and `after` are by name.
    """

    def hangs(replica: Replica) -> bool:
        first, last = before.get(replica.name), after.get(replica.name)
        if last is None:
            return True
        if first is None or last.generated_tokens is None:
            return False
        return (first.prompt_tokens, first.generated_tokens) == (last.prompt_tokens, last.generated_tokens)

    return tuple(filter(hangs, silent))
