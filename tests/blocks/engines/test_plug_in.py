"""An engine as a package brings it: one file and one line of its own, and no file of Skyferry's is touched."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from blocks.engines.openai import OpenAIEngine
from blocks.engines.registry import engines
from blocks.errors import Refused
from blocks.local.fleet import LocalFleet
from blocks.local.processes import end, marked
from blocks.ports.engine import Load
from blocks.ports.fleet import EngineChoice, EngineSettings, ReplicaOrder
from tests.fakes.fleet import OFFER
from tests.fakes.store import FakeStore
from tests.mirroring import manifest_of_nothing

ENGINE = '''
"""An engine of a package's own."""

from blocks.engines.known import KnownEngine, LocalCommand, LocalStart

SERVER = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = "echo:running 0\\\\necho:waiting 0\\\\n" if self.path == "/metrics" else json.dumps(sys.argv)
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode())

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def start(given: LocalStart) -> LocalCommand:
    words = [str(given.python), "-c", SERVER, str(given.port), given.service, *given.flags]
    return LocalCommand(words, {"ECHO_KEY": given.api_key})


ECHO = KnownEngine(
    name="echo",
    package="echo-engine",
    metrics={"running": "echo:running", "waiting": "echo:waiting"},
    task_mark="echo-engine serve",
    flags_of="1.0",
    flags=frozenset({"loud"}),
    ours={"port": "the fleet chooses it"},
    local=start,
)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installed as pip would: a module, and metadata that name it."""
    (tmp_path / "echo_engine.py").write_text(ENGINE)
    metadata = tmp_path / "echo_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[skyferry.engines]\necho = echo_engine:ECHO\n")
    monkeypatch.syspath_prepend(tmp_path)
    engines.cache_clear()
    yield
    engines.cache_clear()
    sys.modules.pop("echo_engine", None)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    store = FakeStore()
    store.put("models/maker/m/1/skyferry-manifest.json", manifest_of_nothing("models/maker/m/1/"), replacing=None)
    # The field is typed as the real block, for the form in the UI; a fake comes in unvalidated.
    yield LocalFleet.model_construct(directory=tmp_path / "fleet", store=store)
    end([*marked(tmp_path)], grace_seconds=1)


@pytest.mark.server
@pytest.mark.usefixtures("package")
def test_it_is_found_checked_started_and_asked(fleet: LocalFleet) -> None:
    """By its name: flags go through its table, its command starts it, and its metrics are read."""
    with pytest.raises(Refused, match="knows no flag lod"):
        fleet.resolve_engine(EngineChoice("echo", flags={"lod": 1}))
    build = fleet.resolve_engine(EngineChoice("echo", flags={"loud": "a b; c"})).build
    assert (build.name, build.version) == ("echo", "1.0")
    order = ReplicaOrder("chat-1a-0", "chat", "1a", "models/maker/m/1/", EngineSettings(512, 1, build=build))
    replica = fleet.launch(order, OFFER)
    engine = OpenAIEngine(key_of=fleet.key_of)
    assert engine.is_healthy(replica)
    assert engine.load(replica) == Load(0, 0)
    assert httpx.get(f"http://{replica.address}/").json()[2:] == ["chat", "--loud=a b; c"]
    assert fleet.replicas("chat") == (replica,)
    record = json.loads((fleet.directory / "replicas" / "chat-1a-0.json").read_text())
    assert record["engine"] == "echo"
    fleet.stop(replica.name)
    assert fleet.replicas("chat") == ()


@pytest.mark.usefixtures("package")
def test_what_is_no_engine_is_named(tmp_path: Path) -> None:
    """Whoever has installed it is told what to mend."""
    (tmp_path / "echo_engine-1.0.dist-info/entry_points.txt").write_text("[skyferry.engines]\necho = json:dumps\n")
    with pytest.raises(Refused, match="json:dumps, which a package installs as an engine, is no KnownEngine"):
        engines()


def test_without_the_package_it_is_unknown(fleet: LocalFleet) -> None:
    """As after somebody has removed it: a release that records it is refused in words."""
    with pytest.raises(Refused, match="there is no engine 'echo'"):
        fleet.resolve_engine(EngineChoice("echo"))
