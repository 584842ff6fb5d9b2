"""What is only shown decides nothing: no artifact fails, holds up or rolls back a run."""

import json
import logging
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact as Known

from flows.boards.artifacts import KEY_CHARACTERS, Artifact, artifact_key, show, shown_over, wait_until_shown
from flows.boards.shown import Page, Progress, Table
from flows.collect import collect_mirrors
from flows.mirror import mirror_model
from flows.plans import (
    CollectPlan,
    MirrorPlan,
    ProvisionPlan,
    ReapPlan,
    ReconcilePlan,
    ReleasePlan,
    ScaleDownPlan,
    ScaleUpPlan,
    VerifyPlan,
)
from flows.provision import provision_fleet
from flows.reap import reap_orphans
from flows.reconcile import reconcile
from flows.release import release_model
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from flows.verify import verify_mirror
from tests.flows.conftest import REPO, World

Answer = Callable[[httpx.Request], httpx.Response]


def away(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody is there", request=request)


def says_no(_: httpx.Request) -> httpx.Response:
    return httpx.Response(500, json={"detail": "the artifacts' table is gone"})


def talks_nonsense(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"<html>")


@pytest.fixture
def asked() -> list[str]:
    """The paths that a server was asked for."""
    return []


def over(answer: Answer, asked: list[str]) -> dict[str, Any]:
    """Settings of httpx with which all that shows artifacts is answered so."""

    def note(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/csrf-token"):
            return httpx.Response(404)  # as a server says that wants no such token
        asked.append(request.url.path)
        return answer(request)

    return {"transport": httpx.MockTransport(note)}


def known(key: str) -> list[Known]:
    wait_until_shown()
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def release(world: World, revision: str, **settings: object) -> None:
    del world
    plan = {"service": "chat", "repo": REPO, "revision": revision, "stages_percent": (50, 100), "stage_seconds": 0}
    release_model(ReleasePlan.model_validate({**plan, **settings}))


FLOWS: Mapping[str, Callable[[World], object]] = {
    "release-model": lambda world: release(world, "v2"),
    "mirror-model": lambda _: mirror_model(MirrorPlan(service="chat", repo=REPO, revision="v3")),
    "provision-fleet": lambda _: provision_fleet(
        ProvisionPlan(service="chat", repo=REPO, revision="v3", plan_only=True)
    ),
    "scale-down": lambda _: scale_down(ScaleDownPlan(service="chat", replicas=1)),
    "scale-up": lambda _: scale_up(ScaleUpPlan(service="chat")),
    "verify-mirror": lambda _: verify_mirror(VerifyPlan(service="chat", repo=REPO)),
    "collect-mirrors": lambda _: collect_mirrors(CollectPlan(service="chat")),
    "reap-orphans": lambda _: reap_orphans(ReapPlan(service="chat")),
    "reconcile": lambda _: reconcile(ReconcilePlan(service="chat")),
}
SHOWS_NOTHING = {"reconcile"}
"""Where nothing is missing."""


@pytest.mark.parametrize("name", FLOWS)
def test_a_server_that_takes_no_artifact_fails_no_flow(live: World, asked: list[str], name: str) -> None:
    """Each flow asks it, is told no, and does what it is for."""
    with shown_over(over(says_no, asked)):
        FLOWS[name](live)
        wait_until_shown()
    assert ("/api/artifacts/" in asked) is (name not in SHOWS_NOTHING)
    if name == "release-model":
        assert [one.state for one in live.record.releases] == ["retired", "live"]


@pytest.mark.parametrize("answer", [away, says_no, talks_nonsense])
def test_a_run_goes_on_however_showing_fails(
    asked: list[str], answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so in its log, by the artifact's name."""

    @flow
    def shows() -> str:
        show("a-page", lambda: Page("", "# Page"))
        return "done"

    with shown_over(over(answer, asked)), caplog.at_level(logging.WARNING):
        assert shows() == "done"
        wait_until_shown()
    assert asked
    assert "a-page could not be shown in the UI" in caplog.text


def test_a_page_that_cannot_be_made_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """An error in what puts it into words is no error of the run."""

    @flow
    def shows() -> str:
        show("no-page", lambda: Page("", str(1 // 0)))
        return "done"

    with caplog.at_level(logging.WARNING):
        assert shows() == "done"
    assert known("no-page") == []
    assert "no-page could not be put into words" in caplog.text


def test_a_server_that_does_not_answer_holds_nobody_up(asked: list[str]) -> None:
    """The run goes on while the first page is still on its way; of what changed meanwhile, the last is shown."""
    bodies, answers = list[str](), Event()

    def answer_late(request: httpx.Request) -> httpx.Response:
        answers.wait(timeout=60)
        bodies.append(json.loads(request.content)["data"])
        return httpx.Response(500)

    @flow
    def shows() -> None:
        board = Artifact("a-board")
        for number in range(5):
            board.show(lambda number=number: Page("", str(number)), at_once=True)

    with shown_over(over(answer_late, asked)):
        shows()  # it has ended before anybody has answered
        assert bodies == []
        answers.set()
        wait_until_shown()
    assert bodies[-1] == "4"
    assert len(bodies) <= 2


def test_an_artifact_is_written_over() -> None:
    """One that is shown twice is one, of this run, with the last words."""

    @flow
    def shows() -> None:
        board = Artifact("Board of s3://Models/")
        board.show(lambda: Page("first", "# First"))
        wait_until_shown()
        board.show(lambda: Page("not yet", "# Too soon after the first"))
        wait_until_shown()
        board.show(lambda: Page("last", "# Last"), at_once=True)

    shows()
    (shown,) = known("board-of-s3-models")
    assert (shown.type, shown.description, shown.data) == ("markdown", "last", "# Last")
    assert shown.flow_run_id is not None


def test_tables_and_bars_are_what_the_ui_knows_as_such() -> None:
    """Rows as JSON, and a number of percent."""

    @flow
    def shows() -> None:
        show("some-rows", lambda: Table("1 row", [{"what": "a", "count": 1}]))
        show("some-progress", lambda: Progress("half", 50.0))

    shows()
    (rows,), (progress,) = known("some-rows"), known("some-progress")
    assert (rows.type, json.loads(str(rows.data))) == ("table", [{"what": "a", "count": 1}])
    assert (progress.type, progress.data) == ("progress", 50.0)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("garbage-chat-s3://models/models/", "garbage-chat-s3-models-models"),
        ("Ünï_Code", "n-code"),
        ("a" * 300, "a" * KEY_CHARACTERS),
    ],
)
def test_keys_are_legal_and_stay(words: str, key: str) -> None:
    """Whatever a store is called; artifacts of two runs have the same one."""
    assert artifact_key(words) == artifact_key(words) == key
