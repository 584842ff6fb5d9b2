"""Whose is a replica, and whose a service?"""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings
from blocks.ports.gateway import Server
from flows.policy.placement.plan import PlacementRules
from flows.policy.releases.installation import (
    Installation,
    check_nobody_else_serves,
    check_same,
    claimed,
    founded,
    inherited,
    remembered,
)
from flows.policy.releases.ledger import ServiceRecord, State, back_out, go_live, open_release

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
URL = "s3://bucket/installation.json"


def record(state: State = "live") -> ServiceRecord:
    """With one release, opened at that time."""
    opened = open_release(
        ServiceRecord(),
        "chat",
        "maker/model",
        "0" * 40,
        EngineSettings(512, 1),
        placement=PlacementRules(),
        run_id="1",
        ended_run_id=None,
        now=NOW,
    )
    if state == "rolled back":
        return back_out(opened, opened.releases[0].id, "bad")
    return go_live(opened, "1") if state == "live" else opened


def test_an_id_is_drawn_once() -> None:
    """Whoever draws a second one keeps the first."""
    first = founded(Installation(), Installation(id="0" * 16, made_at=NOW))
    assert founded(first, Installation(id="1" * 16, made_at=LATER)) == first == Installation(id="0" * 16, made_at=NOW)


@pytest.mark.parametrize("bad", ["../../etc", "0" * 15, "0" * 17, "A" * 16, "a b", "0" * 16 + "\n"])
def test_an_id_is_never_a_path(bad: str) -> None:
    """It becomes a part of one, and comes out of a store."""
    with pytest.raises(ValidationError):
        Installation(id=bad)


@pytest.mark.parametrize(
    ("state", "made_at", "is_own"),
    [
        ("live", LATER, True),
        ("in progress", LATER, True),
        ("rolled back", LATER, False),
        ("live", NOW, False),
        ("live", NOW - timedelta(days=1), False),
        ("live", None, True),
    ],
)
def test_what_bears_no_mark_is_of_a_release_that_stands_since_before(
    state: State,
    made_at: datetime | None,
    is_own: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Later ones are marked, and what has ended may be anybody's."""
    known = record(state)
    installation = Installation(id="0" * 16, made_at=made_at)
    assert inherited(known, installation) == ({known.releases[0].id} if is_own else frozenset())


def marked(installation: str, state: State = "live", opened_at: datetime = NOW) -> ServiceRecord:
    release = record(state).releases[0].model_copy(update={"installation": installation, "opened_at": opened_at})
    return ServiceRecord(releases=(release,))


def test_ledgers_remember_whose_they_are() -> None:
    """What stands says more than what has ended, however late; what is older than the first mark may bear none."""
    assert remembered([]) == remembered([record(), ServiceRecord()]) == Installation()
    assert remembered([marked("0" * 16)]) == Installation(id="0" * 16, made_at=NOW)
    assert remembered([marked("0" * 16, "rolled back")]).id == "0" * 16
    both = [marked("1" * 16, "rolled back", LATER), marked("0" * 16, opened_at=LATER), marked("0" * 16)]
    assert remembered(both) == remembered(both[::-1]) == Installation(id="0" * 16, made_at=NOW)


@pytest.mark.parametrize("bad", ["../../etc", "0" * 15, "A" * 16])
def test_a_ledger_s_id_is_never_a_path(bad: str) -> None:
    """It becomes the installation's own, and so a part of names and paths."""
    changed = record().releases[0].model_dump() | {"installation": bad}
    with pytest.raises(ValidationError):
        ServiceRecord.model_validate({"releases": [changed]})


def test_a_release_of_another_id_is_refused_until_it_has_ended() -> None:
    """One without an id is older than ids in ledgers."""
    own = Installation(id="0" * 16)
    for known in (record(), marked(own.id), marked("1" * 16, "rolled back")):
        check_same(known, own, url=URL)
    for state in ("live", "in progress"):
        with pytest.raises(Refused, match=f"{URL} .*{own.id}.*{state}.*{'1' * 16}.*put {'1' * 16} back"):
            check_same(marked("1" * 16, state), own, url=URL)  # type: ignore[arg-type]


def test_a_service_is_one_block_document() -> None:
    """Its own comes again and again; another one is refused; a service from Python claims nothing."""
    own = claimed(Installation(), "chat", "one", url=URL)
    assert claimed(own, "chat", "one", url=URL) == own
    assert claimed(own, "chat", None, url=URL) == own
    assert claimed(own, "embed", "two", url=URL).services == {"chat": "one", "embed": "two"}
    with pytest.raises(Refused, match=rf"{URL} says that the service 'chat' is the block document one"):
        claimed(own, "chat", "two", url=URL)


@pytest.mark.parametrize("state", ["up", "down", "draining"])
def test_only_who_answers_users_has_a_gateway(state: str) -> None:
    """What is down there is nobody's, and who has released before has put there what there is."""
    server = Server("blue", "127.0.0.1:9000", state, 0)  # type: ignore[arg-type]
    check_nobody_else_serves(record(), "chat", [server])
    if state == "up":
        with pytest.raises(Refused, match=r"127\.0\.0\.1:9000"):
            check_nobody_else_serves(ServiceRecord(), "chat", [server])
    else:
        check_nobody_else_serves(ServiceRecord(), "chat", [server])
