"""The embedded stack from its first start to its end; the tests stand in the order of its life, for it has one only."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
import yaml
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import State, StateType
from typer.testing import Result
from websockets import Subprotocol, WebSocketException
from websockets.sync.client import connect

from blocks.local.processes import marked
from blocks.ports.gateway import WHOLE, Split
from deployments.local.settings import HOST, SERVICE
from deployments.local.stack import prefect_file
from tests.gateway.running import wait_until
from tests.stack.conftest import PATIENCE_SECONDS, REPO, RunningStack, skyferry, up
from tests.stack.doors import METHODS, PATHS, doors

HALF = Split(5000)
PUBLIC = {
    # The pages of its UI, which show nothing until somebody has logged in, and whether it lives.
    "Prefect server": ("GET /", "GET /?Action=ListUsers", "GET /ui-settings", "GET /api/health"),
    # Read-only, as the public hub is.
    "model hub": ("GET /api/models/maker/tiny", "GET /content/maker/tiny/r1/tiny.gguf"),
    # Whether it lives.
    "object store": (*(f"{method} /healthz" for method in METHODS), "GET /status"),
    # Whether it lives, and the name of its model.
    "replica": ("GET /health", "GET /v1/models"),
    # Users': who may call it is for the proxy before it to say.
    "gateway": ("HTTP/2", *(f"{method} {path}" for method in METHODS for path in PATHS)),
}
"""What a stranger may know, by part; docs/operations.md lists the same, with the reasons."""


def tells_a_stranger(url: str) -> bool:
    """Whether it says anything to somebody who gives a wrong key."""
    try:
        with connect(url, subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
            socket.send(json.dumps({"type": "auth", "token": "skyferry:wrong"}))
            socket.recv(timeout=10)
    except WebSocketException:
        return False
    return True


@pytest.fixture(scope="session")
def first_release(stack: RunningStack) -> subprocess.CompletedProcess[str]:
    """The first model's release, as a person types it with the stack's environment."""
    plan = f'{{"service": "{SERVICE}", "repo": "{REPO}", "revision": "r1"}}'
    command = [sys.executable, "-m", "prefect", "deployment", "run", f"release-model/{SERVICE}"]
    return subprocess.run(
        [*command, "--param", f"plan={plan}", "--watch"],
        env={**os.environ, **stack.stack.client_env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_deployment_is_there_and_the_schedules_fire(stack: RunningStack) -> None:
    """What prefect.yaml lists; a scheduler that is broken, as with SQLAlchemy 2.1, says so nowhere else."""
    for entry in yaml.safe_load(prefect_file().read_text())["deployments"]:
        flow = entry["entrypoint"].rpartition(".")[2].replace("_", "-")
        deployment = stack.client.read_deployment_by_name(f"{flow}/{entry['name']}")
        assert len(deployment.schedules) == len(entry.get("schedules", ()))
        if deployment.schedules:
            of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
            wait_until(
                f"runs of {flow} are scheduled",
                lambda of_it=of_it: any(
                    run.state_type == StateType.SCHEDULED
                    for run in stack.client.read_flow_runs(deployment_filter=of_it)
                ),
                PATIENCE_SECONDS,
            )


def test_a_released_model_answers(stack: RunningStack, first_release: subprocess.CompletedProcess[str]) -> None:
    """`prefect deployment run release-model/chat --watch` ends well, and users get completions from two replicas."""
    assert first_release.returncode == 0, first_release.stdout + first_release.stderr
    assert stack.complete().json()["usage"]["completion_tokens"] == 5
    assert len(stack.replica_processes) == 2


def test_every_port_asks_who_is_there(stack: RunningStack, first_release: object) -> None:  # noqa: ARG001 - it comes before
    """A stranger on this machine, or a page in its browser, is told what PUBLIC lists and nothing else, at any port."""
    settings = stack.stack.settings
    found = doors(stack.home.path)
    parts = {settings.ui_port: "Prefect server", settings.hub_port: "model hub", settings.gateway_port: "gateway"}
    parts |= dict.fromkeys(asdict(settings.store_ports).values(), "object store")
    replicas = {int(replica.address.rpartition(":")[2]) for replica in stack.stack.fleet.every_replica()}
    parts |= dict.fromkeys(replicas, "replica")
    assert {door.port for door in found} >= set(parts)
    assert {door.host for door in found} == {HOST}
    told = {(parts.get(door.port, "other"), words) for door in found for words in door.told()}
    assert told - {(part, words) for part, known in PUBLIC.items() for words in known} == set()
    # It is no test where nobody was asked.
    assert ("Prefect server", "GET /api/health") in told
    assert ("model hub", "GET /api/models/maker/tiny") in told


def test_prefect_tells_a_stranger_nothing(stack: RunningStack) -> None:
    """Each route of its API is refused without the key; so are its sockets, by which logs and events are read."""
    settings = stack.stack.settings
    auth = httpx.BasicAuth(*settings.api_auth.split(":"))
    routes = httpx.get(f"{settings.api_url}/openapi.json", auth=auth).json()["paths"]
    asked = [
        (method, path) for path, methods in routes.items() for method in methods if path not in {"/health", "/ready"}
    ]
    assert len(asked) > 100
    with httpx.Client(base_url=settings.api_url, headers={"Host": "rebound.example"}) as stranger:
        for method, path in asked:
            for key in (None, httpx.BasicAuth("skyferry", ""), httpx.BasicAuth("skyferry", "wrong")):
                answer = stranger.request(method, path.replace("/api/", "/"), auth=key, content=b"{}")
                assert answer.status_code == httpx.codes.UNAUTHORIZED, (method, path, answer.text)
    for path in ("/events/out", "/logs/out", "/events/in"):
        assert not tells_a_stranger(f"{settings.api_url.replace('http', 'ws')}{path}")


def test_the_key_is_in_files_of_this_user_alone(stack: RunningStack) -> None:
    """In no command line, no log, no database, and in no file that another can read."""
    key = stack.stack.settings.api_key
    assert len(key) > 30
    # Asked for so, what has ended meanwhile has none.
    command_lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in command_lines if key in " ".join(words)]
    modes = {path.name: stat.S_IMODE(mode) for path, mode in _files_that_hold(key.encode(), stack.home.path)}
    # A worker hands each run its environment in a private `workspace.json`, which it deletes when the run ends.
    assert {"env", "stack.json"} <= modes.keys() <= {"env", "stack.json", "workspace.json"}
    assert set(modes.values()) == {0o600}


def _files_that_hold(key: bytes, folder: Path) -> Iterator[tuple[Path, int]]:
    """Each with its mode; what is deleted while we look holds nothing."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink() and key in path.read_bytes():
                yield path, path.stat().st_mode


def test_a_shell_that_has_read_env_finds_prefect(stack: RunningStack) -> None:
    """As the README says: `. .skyferry/env`, and then `prefect`."""
    script = f'. {shlex.quote(str(stack.home.env_file))} && exec "$0" -m prefect work-pool ls'
    listed = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "local" in listed.stdout


@pytest.mark.usefixtures("first_release")
def test_a_roll_back_waits_behind_no_mirror(stack: RunningStack) -> None:
    """More long mirrors than may run at once: what takes traffic back has a place of its own, and runs now."""
    hub = next(part.daemon.find() for part in stack.stack.parts if part.title == "model hub")
    assert hub is not None
    hub.suspend()
    try:
        mirrors = [stack.start("mirror-model", repo=REPO, revision="r2") for _ in range(3)]
        wait_until(
            "two mirrors run", lambda: sum(stack.state(run).is_running() for run in mirrors) == 2, PATIENCE_SECONDS
        )
        refused = stack.end_of(stack.start("roll-back", reason="users complain"))
        assert "there is nothing to roll back to" in (refused.message or "")
        assert not any(stack.state(run).is_final() for run in mirrors)
        assert sum(stack.state(run).is_running() for run in mirrors) == 2
    finally:
        hub.resume()
    assert stack.end_of(mirrors[0]).is_completed()


@pytest.mark.usefixtures("first_release")
def test_a_replica_that_dies_comes_back_by_itself(stack: RunningStack) -> None:
    """Nobody looks, and within a minute or two as many answer as were asked for."""
    begun = stack.replica_processes
    begun[0].kill()
    wait_until(
        "two replicas are up",
        lambda: [state for _, _, state in stack.servers] == ["up", "up"] and len(stack.replica_processes) == 2,
        2 * PATIENCE_SECONDS,
    )
    assert begun[1].is_running()
    assert stack.complete().is_success


def test_up_finds_the_stack_that_runs(stack: RunningStack) -> None:
    """The second `up` starts nothing and prints the same addresses."""
    before = stack.pids
    found = skyferry("up", *stack.data)
    assert found.exit_code == 0, found.output
    assert "starting" not in found.output
    assert stack.stack.settings.ui_url in found.output
    assert "asks once for a password: all that PREFECT_API_AUTH_STRING is in" in found.output
    assert stack.stack.settings.api_key not in found.output
    assert stack.pids == before
    assert len(before) == len(stack.stack.parts)


@pytest.mark.parametrize("name", ["ui", "gateway"])
def test_a_running_stack_keeps_its_ports(stack: RunningStack, name: str) -> None:
    """`up` with another port says which it has and what to do."""
    refused = skyferry("up", *stack.data, f"--{name}-port", "1234")
    has = getattr(stack.stack.settings, f"{name}_port")
    assert refused.exit_code == 1
    assert f"runs with --{name}-port {has}; run `skyferry down` first" in refused.output


@pytest.fixture(scope="session")
def outage(stack: RunningStack, first_release: object) -> dict[str, State]:  # noqa: ARG001 - it comes before
    """How runs end whose gateway is dead, whose store is, and whose service nobody knows."""
    stack.kill("gateway")
    runs = {"gateway": stack.start("scale-down"), "service": stack.start("scale-down", service="nobody")}
    # It has read the ledger by then, so that it is the gateway that it waits for.
    wait_until("scale-down tries again", lambda: stack.tries_again(runs["gateway"]), PATIENCE_SECONDS)
    stack.kill("object store")
    runs["store"] = stack.start("mirror-model", repo=REPO, revision="r2")
    return {name: stack.end_of(run) for name, run in runs.items()}


def test_a_dead_gateway_stops_no_replica(stack: RunningStack, outage: dict[str, State]) -> None:
    """Scale-down does not know what is busy, so it fails, names the gateway's socket and leaves everything."""
    assert outage["gateway"].is_failed()
    assert f"no connection to the gateway at {stack.home.gateway / 'admin.sock'}" in (outage["gateway"].message or "")
    assert len(stack.replica_processes) == 2


def test_a_dead_store_is_named(stack: RunningStack, outage: dict[str, State]) -> None:
    """With its address, and what to look at."""
    address = f"127.0.0.1:{stack.stack.settings.store_ports.s3}"
    assert outage["store"].is_failed()
    assert address in (outage["store"].message or "")
    assert "check that it runs" in (outage["store"].message or "")


def test_an_unknown_service_is_named_beside_those_that_are_known(outage: dict[str, State]) -> None:
    """Somebody mistyped it."""
    assert outage["service"].is_failed()
    assert f"there is no Service block 'nobody'; there is '{SERVICE}'" in (outage["service"].message or "")


@pytest.mark.usefixtures("outage")
def test_up_brings_back_what_has_died(stack: RunningStack) -> None:
    """Status names what is down and exits with 1; `up` starts that alone, and users' traffic goes where it went."""
    stack.kill("Prefect worker")
    alive = stack.pids
    told = skyferry("status", *stack.data)
    assert told.exit_code == 1
    assert down(told) == ["object store", "gateway", "Prefect worker"]
    with up(stack.home) as starting:
        said, _ = starting.communicate()
    assert starting.returncode == 0, said
    assert alive.items() < stack.pids.items()
    assert skyferry("status", *stack.data).exit_code == 0
    assert stack.record.live is not None
    assert stack.gateway.split(SERVICE) == Split.giving(stack.record.live.slot, WHOLE)
    assert {(slot, state) for slot, _, state in stack.servers} == {(stack.record.live.slot, "up")}
    assert stack.complete().is_success


SECOND = {"repo": REPO, "revision": "r2", "stages_percent": [50, 100], "keep_warm_seconds": 0}


@pytest.fixture(scope="session")
def killed_release(stack: RunningStack, first_release: object) -> State:  # noqa: ARG001 - it comes before
    """How the second release ends whose process is killed in its first stage."""
    run = stack.start("release-model", **SECOND, stage_seconds=3600)
    wait_until("the candidate has half", lambda: stack.gateway.split(SERVICE) == HALF, PATIENCE_SECONDS)
    stack.process_of(run).kill()
    return stack.end_of(run)


def test_a_release_whose_process_is_killed_leaves_users_with_what_they_have(
    stack: RunningStack, killed_release: State
) -> None:
    """Prefect sees that it crashed; nothing moves, and both halves are served."""
    assert killed_release.is_crashed()
    assert stack.gateway.split(SERVICE) == HALF
    assert len(stack.replica_processes) == len(stack.servers) == 4


@pytest.mark.usefixtures("killed_release")
def test_the_same_release_again_goes_on_with_what_is_there(stack: RunningStack) -> None:
    """It adopts the replicas, ends well though its worker is killed meanwhile, and no user notices any of it."""
    begun = {process.pid for process in stack.replica_processes}
    with stack.users.calling(stack.stack.settings.endpoint, rate=10):
        run = stack.start("release-model", **SECOND, stage_seconds=3)
        wait_until("the run acts for the release", lambda: holder(stack) == str(run), PATIENCE_SECONDS)
        stack.kill("Prefect worker")
        told = skyferry("status", *stack.data)
        assert not stack.state(run).is_final()
        assert down(told) == ["Prefect worker"]
        state = stack.end_of(run)
    assert state.is_completed(), state.message
    live = stack.record.live
    assert live is not None
    assert [replica.release for replica in stack.stack.fleet.every_replica()] == [live.id] * 2
    assert {process.pid for process in stack.replica_processes} < begun
    assert len(stack.replica_processes) == len(stack.servers) == 2
    assert stack.gateway.split(SERVICE) == Split.giving(live.slot, WHOLE)
    noticed = stack.users.noticed()
    assert noticed.sent > 0
    assert (noticed.lost, noticed.refused, noticed.streams_cut) == (0, 0, 0)


@pytest.mark.usefixtures("killed_release")
def test_a_reboot_leaves_no_run_that_never_ends(stack: RunningStack) -> None:
    """What was at it has crashed, and its place under the deployment's limit is free: the next reconcile runs."""
    stack.replica_processes[0].kill()
    stack.start("reconcile")
    wait_until("a reconcile runs", lambda: bool(stack.running("reconcile")), PATIENCE_SECONDS)
    (run,) = stack.running("reconcile")
    stack.process_of(run).suspend()
    for process in marked(stack.home.path):
        process.kill()
    with up(stack.home) as starting:
        said, _ = starting.communicate()
    assert starting.returncode == 0, said
    assert stack.state(run).is_crashed()
    stack.start("reconcile")
    wait_until("both replicas serve", lambda: len(stack.servers) == len(stack.replica_processes) == 2, PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def interrupted_release(stack: RunningStack, killed_release: State) -> UUID:  # noqa: ARG001 - it comes before
    """The run of a release in the middle of which everything was stopped, one replica being dead."""
    stack.bring_back("Prefect worker")
    run = stack.start("release-model", **SECOND | {"revision": "r1"}, stage_seconds=3600)
    wait_until("the candidate has half", lambda: stack.gateway.split(SERVICE) == HALF, PATIENCE_SECONDS)
    stack.replica_processes[0].kill()
    assert skyferry("down", *stack.data).exit_code == 0
    return run


@pytest.mark.usefixtures("interrupted_release")
def test_down_leaves_nothing(stack: RunningStack) -> None:
    """No process, no port, no socket, no pid file."""
    assert stack.remains() == []


def test_down_undoes_the_release_under_way(stack: RunningStack, interrupted_release: UUID) -> None:
    """The next `up` finds a run that has ended and no release in progress; killed half-way, `down` ends it as well."""
    with up(stack.home) as starting:
        wait_until("Prefect answers", lambda: stack.stack.parts[0].is_healthy, PATIENCE_SECONDS)
        stack.stack.settings.seaweed(stack.home).wait_until_ready()
        assert stack.state(interrupted_release).is_crashed()
        assert stack.record.in_progress is None
        starting.kill()
    stack.kill("gateway", "Prefect server")
    assert skyferry("down", *stack.data).exit_code == 0
    assert stack.remains() == []


def holder(stack: RunningStack) -> str | None:
    """The run that acts for the release in progress."""
    return stack.record.in_progress and stack.record.in_progress.run_id


def down(status: Result) -> list[str]:
    """The parts that are down, in the words of `skyferry status`."""
    return [line.split("│")[1].strip() for line in status.output.splitlines() if "down" in line]
