"""What an engine must keep, so that the gates and the gateway may rely on it: each engine that runs on this machine.

A new engine's file is held to it by one more name in ENGINES; one that cannot run here is run where it can, by whoever
brings it. What is asked of the engine through its client is in tests/contracts/test_engine.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import httpx
import psutil
import pytest
import stamina

from blocks.engines.openai import OpenAIEngine
from blocks.local.fleet import LocalFleet
from blocks.local.processes import Daemon, end, marked
from blocks.ports.fleet import EngineChoice, EngineSettings, Replica, ReplicaOrder
from tests.contracts.test_fleet import publish
from tests.fakes.fleet import OFFER
from tests.fakes.store import FakeStore
from tests.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.server
ENGINES = ["llama.cpp"]
PREFIX = "models/maker/tiny/1/"
PATHS = (
    *("/", "/docs", "/openapi.json", "/metrics", "/models", "/v1/models", "//v1/models", "/v1/models/", "/version"),
    *("/props", "/slots", "/tokenize", "/detokenize", "/completion", "/v1/completions", "/v1/chat/completions"),
    *("/v1/embeddings", "/v1/rerank", "/rerank", "/pooling", "/v1/responses", "/v1/messages", "/invocations", "/load"),
    *("/lora-adapters", "/v1/load_lora_adapter", "/pause", "/sleep", "/collective_rpc", "/server_info", "/api/tags"),
    *("/health/../v1/models", "/health/../metrics", "/health?path=/metrics/..", "/tools", "/infill", "/ping"),
)
"""Of engines that there are, and ways around a guard."""
HEALTH = ("/health", "/v1/health", "/health?path=/metrics/..", "/ping")
"""What may say that it is well to whoever asks, and nothing else."""
TOOL = {"type": "function", "function": {"name": "answer", "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True)
class Kept:
    fleet: LocalFleet
    replica: Replica
    engine: OpenAIEngine

    @property
    def key(self) -> str:
        return self.fleet.key_of(self.replica.release)

    @property
    def daemon(self) -> Daemon:
        return Daemon(self.replica.name, self.fleet.directory / "replicas")

    def ask(self, **body: object) -> httpx.Response:
        asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0, **body}
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(f"http://{self.replica.address}/v1/chat/completions", json=asked, headers=headers, timeout=60)


@pytest.fixture(scope="module", params=ENGINES)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Kept]]:
    """One replica of that engine by name, ready; the same again for the same name."""
    directory, store = tmp_path_factory.mktemp("keeps"), FakeStore()
    publish(store, PREFIX, {"tiny.gguf": tiny_gguf()})
    # The field is typed as the real block, for the form in the UI; a fake comes in unvalidated.
    fleet = LocalFleet.model_construct(directory=directory, store=store)
    build = fleet.resolve_engine(EngineChoice(request.param)).build

    def launched(name: str) -> Kept:
        order = ReplicaOrder(name, "chat", "1a", PREFIX, EngineSettings(4096, 2, build=build))
        kept = Kept(fleet, fleet.launch(order, OFFER), OpenAIEngine(key_of=fleet.key_of))
        for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=60, wait_max=0.1):
            with attempt:
                assert kept.engine.is_healthy(kept.replica)
        return kept

    yield launched
    end([*marked(directory)], grace_seconds=1)


@pytest.fixture
def kept(start: Callable[[str], Kept]) -> Kept:
    return start("chat-1a-0")


def test_nothing_but_its_health_is_open_without_the_key(kept: Kept) -> None:
    """Whatever the path and the method: nobody else reads a word, and a browser's preflight learns nothing."""
    for key in ("", "Bearer ", "Bearer wrong", f"Basic {kept.key}"):
        headers = {"Authorization": key} if key else {}
        for path in PATHS:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                # Not httpx, which would tidy up the path.
                connection = HTTPConnection(kept.replica.address, timeout=30)
                connection.request(method, path, b"{}" if method in {"POST", "PUT"} else None, headers)
                answer = connection.getresponse()
                said = answer.read()
                connection.close()
                is_open = answer.status < 400 and bool(said)
                assert not is_open or (method == "GET" and path in HEALTH), (method, path, key, said)
    assert httpx.get(f"http://{kept.replica.address}/health").status_code == 200


def test_the_key_is_neither_on_a_command_line_nor_in_the_log(kept: Kept) -> None:
    """Of none of its processes, whatever it was sent; and what users write is not in the log either."""
    assert kept.ask().status_code == 200
    kept.ask(messages=[{"role": "user", "content": "a word that is a user's own"}], max_tokens=-5)
    kept.ask(messages="a word that is a user's own")
    process = kept.daemon.find()
    assert process is not None
    for member in (process, *process.children(recursive=True)):
        assert kept.key not in " ".join(member.cmdline())
    log = kept.daemon.log_file.read_text()
    assert kept.key not in log
    assert "a user's own" not in log


def test_its_gauges_are_zero_when_it_is_idle(kept: Kept) -> None:
    """Drained means stopped: a gauge that stays up would keep a replica for ever, and one that lies loses answers."""
    assert kept.ask().status_code == 200
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=20, wait_max=0.1):
        with attempt:
            load = kept.engine.load(kept.replica)
            assert load is not None
            assert (load.running, load.waiting) == (0, 0)


def test_usage_counts_what_was_read_and_written(kept: Kept) -> None:
    """In an answer as a whole, and at the end of a stream for whoever asks for it."""
    usage = kept.ask().json()["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] == 8
    lines = kept.ask(stream=True, stream_options={"include_usage": True}).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")][-1] == 8


def test_users_can_call_tools(kept: Kept) -> None:
    """A request with tools is no error: models that know none answer in words."""
    for choice in ("auto", "required", "none"):
        assert kept.ask(tools=[TOOL], tool_choice=choice).status_code == 200


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(kept: Kept) -> None:
    """HTTP 400 in OpenAI's form."""
    refused = kept.ask(messages=[{"role": "user", "content": "a" * 10_000}])
    assert refused.status_code == 400
    assert refused.json()["error"]


def test_what_is_in_flight_when_it_is_ended_is_finished_or_seen_to_break_off(start: Callable[[str], Kept]) -> None:
    """No half answer looks whole; and it is gone within the time that its file says."""
    ended = start("chat-1a-1")
    process = ended.daemon.find()
    assert process is not None
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 3000}
    connection = HTTPConnection(ended.replica.address, timeout=90)
    headers = {"Authorization": f"Bearer {ended.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    heard = answer.readline()
    ended.fleet.stop(ended.replica.name)
    try:
        heard += answer.read()
        has_broken = False
    except (IncompleteRead, OSError):
        has_broken = True
    assert has_broken or b"data: [DONE]" in heard or b'"error"' in heard
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert ended.fleet.replicas("chat") in {(), (start("chat-1a-0").replica,)}
    assert Path(ended.daemon.log_file).exists()
