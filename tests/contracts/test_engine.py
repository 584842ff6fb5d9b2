"""What every engine keeps to: the one in memory, and llama.cpp asked over HTTP and by TLS, for each kind of model."""

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Literal

import pytest
import stamina
import trustme

from blocks.engines.openai import OpenAIEngine
from blocks.errors import Refused, Unavailable, Unsound
from blocks.local.processes import free_port
from blocks.ports.engine import Answer, Engine, Load, Prompt
from blocks.ports.fleet import EngineSettings, ModelKind, Replica, ReplicaOrder
from blocks.replica_tls import Authority, new_authority, new_identity, release_key
from tests.fakes.fleet import OFFER, FakeEngine, FakeFleet
from tests.gateway.replica import Replica as StandIn
from tests.servers import canned_server
from tests.tiny_gguf import tiny_replica

VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.75
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="tiny"} 4.0
vllm:num_preemptions_total{engine="1",model_name="tiny"} 1.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1000.0
vllm:prompt_tokens_total{engine="1",model_name="tiny"} 500.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 300.0
vllm:generation_tokens_total{engine="1",model_name="tiny"} NaN
# HELP vllm:inter_token_latency_seconds Histogram of inter-token latency in seconds.
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.025",model_name="tiny"} 200.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 280.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="tiny"} 280.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="tiny"} 5.6
# HELP vllm:request_queue_time_seconds Histogram of time spent in WAITING phase for request.
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 20.0
vllm:request_queue_time_seconds_count{engine="0",model_name="tiny"} 20.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="tiny"} 1.5
"""


@dataclass(frozen=True)
class Case:
    engine: Engine
    replica: Replica
    """It answers two requests at the same time."""
    hold: Callable[[int], AbstractContextManager[None]]
    """So many requests are in flight there for as long as the block lasts."""


def fake_case() -> Case:
    fleet = FakeFleet()
    engine = FakeEngine(fleet)
    order = ReplicaOrder("chat-1a-0", "chat", "1a", "models/tiny/1/", EngineSettings(512, 2))
    replica = fleet.launch(order, OFFER)

    @contextmanager
    def hold(requests: int) -> Iterator[None]:
        engine.in_flight_at[replica.address] = requests
        yield
        del engine.in_flight_at[replica.address]

    return Case(engine, replica, hold)


def at(address: str) -> Replica:
    return Replica("chat-1a-0", "chat", "1a", "here", address)


NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)


def engine_of(authority: Authority) -> OpenAIEngine:
    return OpenAIEngine(key_of=lambda release: release_key(authority, release), replica_ca=authority.certificate)


@contextmanager
def endless_requests(connect: Callable[[], HTTPConnection], requests: int, key: str = "") -> Iterator[None]:
    """Streams far longer than a test, whose users leave at the end of the block."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 4000})
    with ExitStack() as connections:
        for _ in range(requests):
            connection = connections.enter_context(closing(connect()))
            connection.request("POST", "/v1/chat/completions", body, headers)
        yield


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tiny_replica(tmp_path_factory.mktemp("replica")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def tls_replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    identity, key = new_identity(AUTHORITY, NOW), release_key(AUTHORITY, "1a")
    with tiny_replica(tmp_path_factory.mktemp("replica"), identity=identity, api_key=key) as (address, _):
        yield replace(at(address), is_tls=True)


@pytest.fixture(params=["fake", *(pytest.param(way, marks=pytest.mark.server) for way in ("llama.cpp", "by TLS"))])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "fake":
        return fake_case()
    if request.param == "llama.cpp":
        address: str = request.getfixturevalue("address")
        return Case(OpenAIEngine(), at(address), lambda count: endless_requests(lambda: HTTPConnection(address), count))
    replica: Replica = request.getfixturevalue("tls_replica")
    key = release_key(AUTHORITY, replica.release)
    unverified = ssl._create_unverified_context()  # noqa: S323 - whose it is the engine finds out
    return Case(
        engine_of(AUTHORITY),
        replica,
        lambda count: endless_requests(lambda: HTTPSConnection(replica.address, context=unverified), count, key),
    )


KINDS: tuple[ModelKind, ...] = ("completion", "embedding", "rerank")
"""All but chat, whose cases are above."""
RANKING = Prompt("abc", 1, "ranking", ("abc", "xyz", "the quick brown fox"))
PROMPTS: dict[ModelKind, Prompt] = {
    "completion": Prompt("so it goes", 8, "continuation"),
    "embedding": Prompt("hello", 1, "vector"),
    "rerank": RANKING,
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[ModelKind, str]]:
    """A replica of each kind."""
    with ExitStack() as replicas:
        yield {
            kind: replicas.enter_context(tiny_replica(tmp_path_factory.mktemp(kind), kind=kind))[0] for kind in KINDS
        }


@pytest.fixture(params=["fake", pytest.param("llama.cpp", marks=pytest.mark.server)])
def engine_and_replica(request: pytest.FixtureRequest) -> Callable[[ModelKind], tuple[Engine, Replica]]:
    if request.param == "fake":
        case = fake_case()
        return lambda _: (case.engine, case.replica)
    addresses: dict[ModelKind, str] = request.getfixturevalue("addresses")
    return lambda kind: (OpenAIEngine(), at(addresses[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_ready_once_it_did_what_its_kind_is_for(
    engine_and_replica: Callable[[ModelKind], tuple[Engine, Replica]], kind: ModelKind
) -> None:
    """It goes on with a text, embeds, or ranks: its health alone does not do."""
    engine, replica = engine_and_replica(kind)
    assert engine.complete(replica, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_is_asked_as_its_kind_is(
    engine_and_replica: Callable[[ModelKind], tuple[Engine, Replica]], kind: ModelKind
) -> None:
    """What pools has neither words nor a first token; what it answers twice is the same."""
    engine, replica = engine_and_replica(kind)
    first, second = (engine.ask(replica, PROMPTS[kind]) for _ in range(2))
    assert (first.status, first.is_whole, first.unsound) == (200, True, "")
    assert first.total_ms > 0
    assert (first.vector, first.scores) == (second.vector, second.scores)
    assert bool(first.text) == (kind == "completion")
    assert bool(first.vector) == (kind == "embedding")
    assert len(first.scores) == (len(RANKING.documents) if kind == "rerank" else 0)
    assert (first.first_token_ms is None) == (kind != "completion")


@pytest.mark.server
def test_llama_cpp_embeds_in_base64_as_in_floats(addresses: dict[ModelKind, str]) -> None:
    """OpenAI's own client asks for base64; both say a vector of the length that the file says."""
    assert OpenAIEngine().complete(at(addresses["embedding"]), "embedding") == "3 vectors of 64 numbers"
    assert len(OpenAIEngine().ask(at(addresses["embedding"]), PROMPTS["embedding"]).vector) == 64


@pytest.mark.server
@pytest.mark.parametrize(
    ("asked", "serves"), [("embedding", "completion"), ("rerank", "embedding"), ("chat", "rerank")]
)
def test_llama_cpp_of_another_kind_is_not_ready(
    addresses: dict[ModelKind, str], asked: ModelKind, serves: ModelKind
) -> None:
    """It is healthy, and says of what it was asked that it cannot do that."""
    assert OpenAIEngine().is_healthy(at(addresses[serves]))
    with pytest.raises(Unavailable, match=r"HTTP (400|500|501) and no "):
        OpenAIEngine().complete(at(addresses[serves]), asked)


@pytest.mark.server
def test_llama_cpp_embeds_an_input_as_long_as_its_context(addresses: dict[ModelKind, str]) -> None:
    """512 tokens with those that begin and end it; what is longer gets no shorter vector, but HTTP 500."""
    engine, replica = OpenAIEngine(), at(addresses["embedding"])
    assert engine.ask(replica, Prompt("a " * 510, 1, "vector")).is_whole
    assert engine.ask(replica, Prompt("a " * 511, 1, "vector")).status == 500


@pytest.mark.server
def test_weights_that_come_to_nothing_are_not_ready(tmp_path: Path) -> None:
    """llama.cpp serves them and is healthy; each vector of theirs is zeros."""
    with tiny_replica(tmp_path, kind="embedding", gain=0.0) as (address, _):
        assert OpenAIEngine().is_healthy(at(address))
        with pytest.raises(
            Unsound, match=rf"{address} answers, and its embedding is of no use: .* all zeros; see that"
        ):
            OpenAIEngine().complete(at(address), "embedding")
        assert "all zeros" in OpenAIEngine().ask(at(address), PROMPTS["embedding"]).unsound


def test_a_replica_that_answers_is_healthy(case: Case) -> None:
    """Health is asked of the address: one answers, the other does not."""
    assert case.engine.is_healthy(case.replica)
    assert not case.engine.is_healthy(at(f"127.0.0.1:{free_port()}"))


def test_a_completion_is_real(case: Case) -> None:
    """A replica that works says something."""
    assert case.engine.complete(case.replica)


def test_no_completion_is_unavailable(case: Case) -> None:
    """Where nothing answers, the error names the address."""
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=nowhere):
        case.engine.complete(at(nowhere))


@pytest.mark.parametrize("requests", [1, 3])
def test_requests_in_flight_are_counted(case: Case, requests: int) -> None:
    """Those that run and those that wait for their turn count alike, and none are left once they have ended."""
    with case.hold(requests):
        wait_for(case, requests)
    wait_for(case, 0)


def wait_for(case: Case, in_flight: int) -> None:
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=20, wait_max=0.05):
        with attempt:
            load = case.engine.load(case.replica)
            assert load is not None
            assert load.in_flight == in_flight


def test_what_a_replica_has_done_is_counted(case: Case) -> None:
    """A completion adds the tokens that it was made of."""

    def generated() -> float:
        load = case.engine.load(case.replica)
        assert load is not None
        assert load.generated_tokens is not None
        return load.generated_tokens

    before = generated()
    case.engine.complete(case.replica)
    assert generated() > before


@pytest.mark.parametrize("expects", ["text", "json", "tool"])
def test_an_answer_is_heard_to_its_end(case: Case, expects: Literal["text", "json", "tool"]) -> None:
    """It is streamed, its first token comes before its last, and there is something in it."""
    answer = case.engine.ask(case.replica, Prompt("Say hello.", 8, expects))
    assert answer.status == 200
    assert answer.is_whole
    assert answer.text or answer.tool_arguments
    assert answer.first_token_ms is not None
    assert 0 < answer.first_token_ms <= answer.total_ms


def test_no_answer_is_an_answer_too(case: Case) -> None:
    """Where nothing listens, that is what came back: no status, and nothing else."""
    answer = case.engine.ask(at(f"127.0.0.1:{free_port()}"), Prompt("Say hello.", 8, "text"))
    assert replace(answer, total_ms=0) == Answer(status=None)


def chunks(*deltas: tuple[dict[str, object], str | None], done: bool = True) -> bytes:
    events = [json.dumps({"choices": [{"delta": delta, "finish_reason": end}]}) for delta, end in deltas]
    return "".join(f"data: {event}\n\n" for event in (*events, *(["[DONE]"] if done else []))).encode()


def said(text: str) -> dict[str, object]:
    return {"content": text}


def called(arguments: str) -> dict[str, object]:
    return {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}


@pytest.mark.parametrize(
    ("status", "body", "heard"),
    [
        (200, chunks((said("he"), None), (said("llo"), "stop")), Answer(200, "hello", tokens=2, is_whole=True)),
        (
            200,
            chunks((called('{"a'), None), (called('": 1}'), "tool_calls")),
            Answer(200, "", '{"a": 1}', tokens=2, is_whole=True),
        ),
        (200, chunks(({"reasoning": "Hm."}, "length")), Answer(200, has_thought=True, tokens=1, is_whole=True)),
        (200, chunks((said("he"), None), done=False), Answer(200, "he", tokens=1)),
        (200, chunks((said("he"), None), (said(""), "abort")), Answer(200, "he", tokens=1)),
        (
            200,
            b": a comment\n\ndata: {no JSON\n\n" + chunks((said("a"), "stop")),
            Answer(200, "a", tokens=1, is_whole=True),
        ),
        (400, b'{"error":{"message":"too long"}}', Answer(400)),
    ],
)
def test_what_is_streamed_is_told_as_far_as_it_came(status: int, body: bytes, heard: Answer) -> None:
    """Text, a tool's arguments, thoughts; cut off, aborted as vLLM does at its end, or refused."""
    with canned_server(status, {"Content-Type": "text/event-stream"}, body) as server:
        answer = OpenAIEngine().ask(at(server.address), Prompt("Say hello.", 8, "text"))
    assert (answer.first_token_ms is not None) == bool(heard.text or heard.tool_arguments or heard.has_thought)
    assert replace(answer, first_token_ms=None, last_token_ms=None, total_ms=0) == heard


def test_the_load_is_unknown_where_nothing_answers(case: Case) -> None:
    """Not zero: nobody knows."""
    assert case.engine.load(at(f"127.0.0.1:{free_port()}")) is None


@pytest.mark.server
def test_llama_cpp_times_its_tokens(address: str) -> None:
    """It counts what it reads and writes, and for how long it wrote; it has no preemptions to count."""
    engine = OpenAIEngine()
    engine.complete(at(address))
    load = engine.load(at(address))
    assert load is not None
    assert load.prompt_tokens
    assert load.token_seconds
    assert load.timed_tokens == load.generated_tokens
    assert (load.preemptions, load.kv_cache) == (None, None)


@pytest.mark.server
def test_a_replica_that_another_authority_vouches_for_is_not_asked(tls_replica: Replica) -> None:
    """Its address may be anybody's by now: it is not healthy, nothing it says is heard, and no key is sent."""
    engine = engine_of(new_authority(NOW))
    assert not engine.is_healthy(tls_replica)
    assert engine.load(tls_replica) is None
    with pytest.raises(Unavailable, match="certificate verify failed"):
        engine.complete(tls_replica)


@pytest.mark.server
def test_a_certificate_for_another_name_is_no_replicas() -> None:
    """The authority alone does not do: the name is verified as well."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with StandIn("stranger", context) as stranger:
        engine = OpenAIEngine(replica_ca=ca.cert_pem.bytes().decode())
        with pytest.raises(Unavailable, match="Hostname mismatch"):
            engine.complete(replace(at(stranger.address), is_tls=True))


@pytest.mark.server
def test_a_replica_answers_nobody_without_its_releases_key(tls_replica: Replica) -> None:
    """Health needs none, for the gateway asks for that; anything else does, and the error says what came."""
    keyless = OpenAIEngine(replica_ca=AUTHORITY.certificate)
    assert keyless.is_healthy(tls_replica)
    assert keyless.load(tls_replica) is None
    with pytest.raises(Unavailable, match="HTTP 401"):
        keyless.complete(tls_replica)
    with pytest.raises(Unavailable, match="HTTP 401"):
        engine_of(AUTHORITY).complete(replace(tls_replica, release="another"))


def test_tls_without_an_authority_is_refused() -> None:
    """Nobody could tell the replica from a stranger."""
    with pytest.raises(Refused, match="its fleet names no authority"):
        OpenAIEngine().is_healthy(replace(at("127.0.0.1:9"), is_tls=True))


def test_the_load_of_vllm_is_that_of_every_rank() -> None:
    """Each data-parallel rank has samples of its own: they add up, the fullest cache counts, what is no number not."""
    with canned_server(200, body=VLLM_METRICS.encode()) as server:
        load = OpenAIEngine().load(at(server.address))
    assert load is not None
    assert load.in_flight == 6
    assert load == Load(
        running=4,
        waiting=2,
        prompt_tokens=1500,
        generated_tokens=300,
        timed_tokens=280,
        token_seconds=5.6,
        queued_requests=20,
        queue_seconds=1.5,
        preemptions=5,
        kv_cache=0.75,
    )


@pytest.mark.parametrize(
    ("status", "page"),
    [
        (200, "vllm:num_requests_running 1\n"),
        (200, "vllm:num_requests_running 1\nvllm:num_requests_waiting NaN\n"),
        (200, "{not metrics}"),
        (200, ""),
        (404, ""),
        (503, VLLM_METRICS),
    ],
)
def test_the_load_is_unknown_where_the_metrics_do_not_tell(status: int, page: str) -> None:
    """A page that lacks what waits, is none, or comes with an error is no reading."""
    with canned_server(status, body=page.encode()) as server:
        assert OpenAIEngine().load(at(server.address)) is None


def test_an_engine_that_counts_less_still_says_what_is_in_flight() -> None:
    """As one of another version: what it does not count is unknown, and the rest is known."""
    page = "vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"
    with canned_server(200, body=page.encode()) as server:
        assert OpenAIEngine().load(at(server.address)) == Load(running=1, waiting=2)


def test_a_loading_engine_is_not_healthy() -> None:
    """503, as engines say while they load, is not healthy."""
    with canned_server(503, body=b'{"error":{"message":"Loading model"}}') as server:
        assert not OpenAIEngine().is_healthy(at(server.address))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, '{"error":{"message":"out of memory"}}'),
        (200, "not JSON"),
        (200, '{"choices":[],"usage":{"completion_tokens":0}}'),
        (200, '{"choices":[{"message":{"content":""}}],"usage":{"completion_tokens":0}}'),
    ],
)
def test_what_came_instead_of_a_completion_is_told(status: int, body: str) -> None:
    """An answer that is no completion is Unavailable, with its status and what it said."""
    with canned_server(status, body=body.encode()) as server, pytest.raises(Unavailable) as raised:
        OpenAIEngine().complete(at(server.address))
    assert f"HTTP {status}" in str(raised.value)
    assert body in str(raised.value)
