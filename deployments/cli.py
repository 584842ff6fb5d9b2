"""The `skyferry` command."""

import errno
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, cast

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blocks.errors import Refused, SkyferryError
from blocks.local.processes import ended_with_this_process
from deployments.local.demo import Demo, Noticed, Report, Users
from deployments.local.settings import SERVICE, Home, StackSettings
from deployments.local.stack import Stack
from flows.policy.releases.ledger import Release
from flows.policy.releases.replay import replay as judge_again

app = typer.Typer(
    help="Skyferry releases open-weight language models onto GPU clusters. These commands tend the embedded stack on "
    "this machine; the releases themselves are flows: `prefect deployment run release-model/chat`.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # a local variable may hold a key
)
console = Console(highlight=False)

Data = Annotated[
    Path,
    typer.Option(envvar="SKYFERRY_DATA", help="The one directory that everything is kept in.", file_okay=False),
]
UiPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="The port of the Prefect UI; without it 4200, or a free one.")
]
GatewayPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="The port that users call; without it 8080, or a free one.")
]
DATA = Path(".skyferry")
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
RATE = 3.0
"""Requests a second: what two small replicas answer while this machine also does everything else."""


@app.command()
def up(data: Data = DATA, ui_port: UiPort = None, gateway_port: GatewayPort = None) -> None:
    """Start the embedded stack: Prefect, an S3 store, a model hub and the gateway; one that runs already is found."""
    with _spoken_errors():
        home = Home(data.resolve())
        with _locked(home):
            stack = _bring_up(home, ui_port, gateway_port)
        _show_addresses(stack)
        _mention_missing_replicas(stack)


@app.command()
def down(data: Data = DATA) -> None:
    """End every process of the stack; its data stays."""
    with _spoken_errors(), _locked(_known_stack(data).home):
        _bring_down(_known_stack(data))
    console.print("Everything is stopped.")


@app.command()
def status(data: Data = DATA) -> None:
    """Say what of the stack is running; exits with 1 where something is not."""
    with _spoken_errors():
        stack = _known_stack(data)
    table = Table("part", "process", "address", "health")
    for part in stack.parts:
        process = part.daemon.find()
        pid, health = str(process.pid) if process else "-", "good" if part.is_healthy else "down"
        table.add_row(part.title, pid, part.address, health)
    for replica in stack.fleet.every_replica():
        table.add_row(f"replica {replica.name}", "", replica.address, "running")
    console.print(table)
    raise typer.Exit(0 if stack.is_up() else 1)


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Where to keep its data; without it, nowhere.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, for machines.")] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second that users send, on average.")] = RATE,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up, and its data in place.")] = False,
) -> None:
    """Release four models under live traffic, two of them bad, and tell what users noticed: the main job."""
    # Told to end, it does what it does at Ctrl-C; where it is killed, its keeper ends what runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = data or (DATA if keep else None)
    with _spoken_errors(), _home_of(directory) as home, nullcontext() if keep else ended_with_this_process(home.path):
        with _locked(home):
            if StackSettings.read(home) is not None:
                raise Refused(
                    f"{home.path} holds a stack already, and the demo begins with none; name another with --data"
                )
            stack = Stack(home, StackSettings.settle(home, None, None))
        try:
            with _locked(home):
                _start(stack)
            report = Demo(stack, rate, console.print).play()
        finally:
            if keep:
                _show_addresses(stack)
            else:
                with _locked(home):
                    _bring_down(stack)
    if json_file is not None:
        json_file.write_text(report.model_dump_json(indent=1))
    _show_report(report)
    raise typer.Exit(0 if report.came_true else 1)


@app.command()
def traffic(
    data: Data = DATA,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second, on average.")] = RATE,
) -> None:
    """Send the requests of made-up users through the gateway until Ctrl-C, and count what becomes of them."""
    with _spoken_errors():
        stack = _known_stack(data)
    users = Users.of(stack)
    with suppress(KeyboardInterrupt), users.calling(stack.settings.endpoint, rate), console.status("") as shown:
        while True:
            shown.update(_in_words(users.noticed()))
            time.sleep(1)
    console.print(_in_words(users.noticed()))


@app.command()
def replay(
    release: Annotated[str, typer.Argument(help="The release's id, as in the ledger.")],
    data: Data = DATA,
    gates: Annotated[
        Path | None, typer.Option(help="Other gates: a JSON object of settings that replace some.")
    ] = None,
) -> None:
    """Rule again on a release's stages from what the ledger keeps; exits with 1 where a verdict is another one."""
    with _spoken_errors():
        known = _known_stack(data).record.releases
        found = next((one for one in known if one.id == release), None)
        if found is None:
            names = ", ".join(one.id for one in known) or "none"
            raise Refused(f"the ledger knows no release {release!r}; it knows {names}")
        others = _gates_in(gates)
        table = Table("stage", "verdict then", "verdict now", "reason now", title=f"Release {found.id}, ruled on again")
        differ = False
        for stage in found.stages:
            again = judge_again(stage, others)
            verdict = again.ruling.verdict
            differ = differ or verdict != stage.verdict
            table.add_row(f"{stage.share_percent} %", stage.verdict, verdict, escape(again.words.text))
    console.print(table)
    raise typer.Exit(1 if differ else 0)


def _gates_in(file: Path | None) -> dict[str, object]:
    if file is None:
        return {}
    try:
        gates = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{file} holds no gates: {error}") from error
    if not isinstance(gates, dict):
        raise Refused(f'{file} holds {type(gates).__name__}; give an object such as {{"error_percent": 2}}')
    return cast("dict[str, object]", gates)


@contextmanager
def _spoken_errors() -> Iterator[None]:
    """What Skyferry has to say is said in words; anything else is a defect and keeps its traceback."""
    try:
        yield
    except SkyferryError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Nobody else starts or ends what is in there meanwhile; who is killed lets go of it."""
    home.refuse_others()
    lock = FileLock(home.lock_file)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            console.print(
                f"Another `skyferry` starts or ends the stack in {home.path}: waiting for it.", soft_wrap=True
            )
            lock.acquire()
    except OSError as error:
        raise _cannot_write(home, error) from error
    with lock:
        lock.release()  # from here on it is held by the `with` alone
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise _cannot_write(home, error) from error


def _cannot_write(home: Home, error: OSError) -> Refused:
    return Refused(
        f"{error.filename or home.path} cannot be written ({error.strerror}); make it this user's, make room there, "
        f"or name another directory with --data"
    )


@contextmanager
def _home_of(directory: Path | None) -> Iterator[Home]:
    """The named directory, or one that is gone afterwards."""
    if directory is not None:
        yield Home(directory.resolve())
        return
    temporary = Path(tempfile.mkdtemp(prefix="skyferry-demo-"))
    try:
        yield Home(temporary)
    finally:
        shutil.rmtree(temporary)


def _known_stack(data: Path) -> Stack:
    home = Home(data.resolve())
    if (settings := StackSettings.read(home)) is None:
        raise Refused(f"{home.path} holds no stack; name another with --data, or run `skyferry up`")
    return Stack(home, settings)


def _bring_up(home: Home, ui_port: int | None, gateway_port: int | None) -> Stack:
    had = StackSettings.read(home)
    if had is not None and Stack(home, had).is_running():
        for name, asked, has in (("ui", ui_port, had.ui_port), ("gateway", gateway_port, had.gateway_port)):
            if asked not in {None, has}:
                raise Refused(f"the stack in {home.path} runs with --{name}-port {has}; run `skyferry down` first")
        if not had.api_key:
            raise Refused(
                f"the stack in {home.path} was started by an earlier version, whose Prefect and store answer anybody "
                f"on this machine; run `skyferry down`, then `skyferry up`: all data stays"
            )
        stack = Stack(home, had)
        if stack.is_up():
            return stack
    else:
        stack = Stack(home, StackSettings.settle(home, ui_port, gateway_port))
    _start(stack)
    return stack


def _start(stack: Stack) -> None:
    with console.status("starting") as shown:

        def say(words: str) -> None:
            shown.update(words)
            console.print(f"[dim]{words}[/dim]")

        stack.up(say)


def _bring_down(stack: Stack) -> None:
    with console.status("stopping") as shown:
        stack.down(shown.update)


def _show_addresses(stack: Stack) -> None:
    env_file = shlex.quote(os.path.relpath(stack.home.env_file))
    bin_directory = shlex.quote(os.path.relpath(Path(sys.executable).parent))
    console.print(
        f"""
Prefect UI   {stack.settings.ui_url}
             asks once for a password: all that PREFECT_API_AUTH_STRING is in {env_file}
Endpoint     {stack.settings.endpoint}

Three commands to try:
  . {env_file}
  {bin_directory}/prefect deployment run release-model/{SERVICE} --watch
  curl {stack.settings.endpoint}/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 20}}'

`skyferry down` ends it.""",
        soft_wrap=True,
    )


def _mention_missing_replicas(stack: Stack) -> None:
    bin_directory = shlex.quote(os.path.relpath(Path(sys.executable).parent))
    if (live := stack.record.live) is not None and not stack.fleet.every_replica():
        console.print(
            f"\nRelease {live.id} is live and none of its replicas runs; this brings them back:\n"
            f"  {bin_directory}/prefect deployment run scale-up/{SERVICE} --watch",
            soft_wrap=True,
        )


def _in_words(seen: Noticed) -> str:
    return f"{seen.sent} requests, {seen.lost} lost, {seen.refused} refused, {seen.streams_cut} streams cut"


def _show_report(report: Report) -> None:
    steps = Table("step", "seconds", "requests", "lost", "refused", "streams cut", title="What users noticed")
    for step in report.steps:
        seen = step.noticed
        counts = (step.seconds, seen.sent, seen.lost, seen.refused, seen.streams_cut)
        steps.add_row(step.name, *map(str, counts))
    console.print(steps)
    console.print(_release_table(report.releases))
    for claim, came_true in report.claims.items():
        console.print(f"{'[green]yes[/green]' if came_true else '[red]no[/red] '}  {claim}")


def _release_table(releases: tuple[Release, ...]) -> Table:
    table = Table("release", "slot", "state", "stages passed (%)", "ended because", title="Releases")
    for release in releases:
        passed = " ".join(str(stage.share_percent) for stage in release.stages if stage.verdict == "promote")
        table.add_row(release.id, release.slot, release.state, passed or "-", release.closing_reason)
    return table
