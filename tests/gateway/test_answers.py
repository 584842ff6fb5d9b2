"""What the gateway's log says of answers, by the examples that the probes go by as well, and of hostile ones."""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from blocks.ports.gateway import Outcome
from deployments.haproxy.config import ROUTES
from tests.gateway.examples import EXAMPLES, LONG_RESPONSE, Example
from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway, wait_until
from tests.tiny_gguf import tiny_replica

pytestmark = pytest.mark.server

PATH_OF = {kind: path for path, (_, kind) in reversed([*ROUTES.items()])}

Cut = Callable[[str], Sequence[str]]
CUTS: dict[str, Cut] = {
    "whole": lambda body: [body],
    "in three": lambda body: [body[: len(body) // 3], body[len(body) // 3 : -2], body[-2:]],
}


def told(outcome: Outcome) -> tuple[str, int | None]:
    """In the examples' words. A refusal is no failure of the replica, and ends nothing short."""
    is_refused = outcome.error_status is not None and outcome.error_status < 500
    assert not (outcome.is_empty and outcome.cut_short)
    amiss = "empty" if outcome.is_empty else "cut or error" if outcome.cut_short or is_refused else "no"
    return amiss, outcome.error_status


def expected(example: Example) -> tuple[str, int | None]:
    return {"cut": "cut or error", "error": "cut or error"}.get(example.amiss, example.amiss), example.error_status


@pytest.mark.parametrize("cut", CUTS)
def test_an_answer_is_told_by_the_examples(gateway: RunningGateway, cut: str) -> None:
    """Each reaches its user as it was, and the log says of it what the probes would; all in one gateway, for speed."""
    start = gateway.cursor()
    for example in EXAMPLES:
        kind = "text/event-stream" if example.is_stream else "application/json; charset=utf-8"
        asked = {"pieces": CUTS[cut](example.body), "type": kind, "seconds_per_piece": 0 if cut == "whole" else 0.005}
        assert gateway.ask(path=PATH_OF[example.kind], **asked).content == example.body.encode()
    outcomes = gateway.outcomes(start, len(EXAMPLES))
    found = {example.name: told(outcome) for example, outcome in zip(EXAMPLES, outcomes, strict=True)}
    assert found == {example.name: expected(example) for example in EXAMPLES}
    tokens = {e.name: o.tokens for e, o in zip(EXAMPLES, outcomes, strict=True) if e.tokens is not None}
    assert tokens == {example.name: example.tokens for example in EXAMPLES if example.tokens is not None}
    assert [outcome.kind for outcome in outcomes] == [example.kind for example in EXAMPLES]


@pytest.mark.parametrize("status", [204, 302, 307, 304])
def test_a_good_status_without_an_answer_is_none(gateway: RunningGateway, status: int) -> None:
    """Sent elsewhere, or told that nothing has changed, a user who asked has nothing."""
    start = gateway.cursor()
    gateway.ask(status=status)
    gateway.ask(path="/v1/embeddings", status=status)
    chat, embedding = gateway.outcomes(start, 2)
    assert (chat.cut_short or chat.is_empty, embedding.cut_short or embedding.is_empty) == (True, False)


@pytest.mark.parametrize("status", [0, 20, 99])
def test_a_status_that_no_http_knows_is_no_good_one(gateway: RunningGateway, status: int) -> None:
    """HAProxy hands it on, and no user's client takes it for an answer."""
    start = gateway.cursor()
    with suppress(httpx.HTTPError):
        gateway.ask(status=status)
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.cut_short


def test_a_body_that_tells_no_length_is_looked_into_as_well(gateway: RunningGateway) -> None:
    """In one piece and in several; and of one that is long nothing is told."""
    start = gateway.cursor()
    empty = '{"choices": [{"message": {"content": ""}}]}'
    for pieces in ([empty], [empty[:9], empty[9:30], empty[30:]], [" " * 70_000, empty]):
        gateway.ask(pieces=pieces, type="application/json", without_length=True)
    assert [outcome.is_empty for outcome in gateway.outcomes(start, 3)] == [True, True, False]


@pytest.mark.parametrize(
    ("kind", "is_bad"),
    [
        ("text/html", True),
        ("", True),
        ("text/plain; x=text/event-stream", True),
        ("TEXT/Event-Stream;charset=UTF-8", False),
        ("Application/JSON", False),
    ],
)
def test_what_is_no_answer_by_its_type_is_a_bad_one(gateway: RunningGateway, kind: str, *, is_bad: bool) -> None:
    """A page in place of an answer is no answer; the type is read without case."""
    start = gateway.cursor()
    is_stream = "stream" in kind.lower()
    body = 'data: {"choices":[{"text":"so"}]}\n\ndata: [DONE]\n\n' if is_stream else '{"choices":[{"text":"so"}]}'
    gateway.ask(pieces=[body], type=kind)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.cut_short, outcome.is_empty) == (is_bad, False)


def test_what_is_too_long_to_be_looked_into_is_told_by_its_name(gateway: RunningGateway) -> None:
    """A user's long instructions, which come back at once, are not the first token, and end no answer short."""
    start = gateway.cursor()
    for pieces in (LONG_RESPONSE, ["".join(LONG_RESPONSE)]):
        gateway.ask(path="/v1/responses", pieces=pieces, type="text/event-stream", seconds_per_piece=0.1)
    for outcome in gateway.outcomes(start, 2):
        assert (outcome.tokens, outcome.cut_short, outcome.is_empty) == (1, False, False)
    first, _ = gateway.outcomes(start, 2)
    assert first.first_token_ms is not None
    assert first.first_token_ms >= 90


def test_a_stream_without_an_end_is_looked_into_no_further(gateway: RunningGateway) -> None:
    """What takes the gateway's time is bounded: 16 MiB. Of words that differ from each other alone there may be any."""
    start = gateway.cursor()
    word = 'data: {"choices":[{"delta":{"content":"so"}}]}\n\n'
    much = word + (": " + "x" * 60_000 + "\n") * 300
    for body in (word * 400_000 + "data: [DONE]\n\n", much + word, much + 'data: {"error":{"code":500}}\n\n'):
        # Most of it in one piece, and what comes after it in another.
        pieces = [body[:-60], body[-60:]]
        assert len(gateway.ask(pieces=pieces, type="text/event-stream", seconds_per_piece=0.1).content) == len(body)
    told = [(outcome.tokens, outcome.cut_short, outcome.error_status) for outcome in gateway.outcomes(start, 3)]
    assert told == [(400_000, False, None), (1, False, None), (1, False, None)]


HOSTILE = {
    "a line without an end": "data: " + "x" * 1_000_000,
    "many lines of one event": "data: x\n" * 50_000,
    "a million line ends": "\n" * 1_000_000,
    "many events": 'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * 20_000,
    "many names": "event: error\r" * 50_000,
    "deep nesting": "data: " + "[" * 60_000 + "\n\n",
    "deep objects": "data: " + '{"a":' * 10_000 + "\n\n",
    "no text": "data: \x00\udcff\udcfe\x01{\n\n\x00: \udc80\n\n",
    "a string without an end": 'data: {"a":"' + "\\" * 60_000 + "\n\n",
    "quotes": 'data: {"choices":[{"delta":{"content":"' + '\\"' * 30_000 + "\n\n",
    "a number without an end": 'data: {"error":{"code":' + "9" * 50_000 + "}}\n\n",
    "a log line": 'data: {"error":{"code":"500\\",\\"status\\":200,\\"x\\":\\"","type":"\\"}"}}\n\n',
}


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_what_is_hostile_reaches_its_user_and_spoils_nothing(gateway: RunningGateway, kind: str) -> None:
    """The log stays readable, and the next answers are told as ever."""
    start = gateway.cursor()
    chance = random.Random(13)  # noqa: S311 - the same each time
    words = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
        "\\",
        "null",
        "1e9",
        '"error"',
        '"choices"',
        "\n\ndata: ",
        "\r",
        "\udc80",
        "\x00",
    ]
    bodies = [*HOSTILE.values(), *("data: " + "".join(chance.choices(words, k=300)) for _ in range(100))]
    for body in bodies:
        assert gateway.ask(pieces=[body], type=kind, seconds_per_piece=0).content == body.encode(
            errors="surrogateescape"
        )
    good = gateway.ask(pieces=['data: {"choices":[{"text":"so"}]}\n\ndata: [DONE]\n\n'], type="text/event-stream")
    assert good.status_code == 200
    *_, last = gateway.outcomes(start, len(bodies) + 1)
    assert (last.tokens, last.cut_short, last.is_empty) == (1, False, False)


def test_nothing_of_a_replicas_headers_reaches_the_log(gateway: RunningGateway, blue: Replica) -> None:
    """Neither the mark that nobody answered, which is the gateway's own, nor anything that would end a line."""
    start = gateway.cursor()
    evil = '","status":200,"srv":"r2","unanswered":"-","x":"'
    headers = {"x-skyferry-unanswered": evil, "X-Skyferry-Unanswered": "1", "content-language": evil}
    answer = gateway.ask(pieces=['{"choices":[{"text":"so"}]}'], type="application/json")
    assert answer.status_code == 200
    answer = gateway.users.post(
        gateway.url(), json={"pieces": ['{"choices":[]}'], "type": "application/json", "answer_headers": headers}
    )
    assert not [name for name in answer.headers if "skyferry" in name]
    _, outcome = gateway.outcomes(start, 2)
    assert (outcome.slot, outcome.address, outcome.is_empty) == ("blue", blue.address, True)
    for line in gateway.by_socket._ask("show events chat").splitlines():
        assert not line or json.loads(line)["unanswered"] == "-"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tiny_replica(tmp_path_factory.mktemp("replica")) as (address, _):
        yield address


@pytest.mark.parametrize(
    "asked", [{"stream": True}, {"stream": True, "n": 1, "logprobs": True}, {"stream": False}, {"stop": [" "]}]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_a_real_engine_says_is_good(tmp_path: Path, llama: str, path: str, asked: dict[str, object]) -> None:
    """llama.cpp's own answers, with tokens that are told one by one, but for those that are no whole letter."""
    with running_gateway(tmp_path / "run") as gateway:
        gateway.by_socket.attach("chat", "blue", llama, is_tls=False)
        wait_until("it is up", lambda: ("blue", llama, "up") in gateway.servers())
        start = gateway.cursor()
        prompt = {"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else {"prompt": "hello"}
        body = {**prompt, **asked, "max_tokens": 12, "stream_options": {"include_usage": True}}
        answer = gateway.ask(path=path, **body)
        assert answer.status_code == 200
        (outcome,) = gateway.outcomes(start, 1)
        assert (outcome.cut_short, outcome.is_empty, outcome.error_status) == (False, False, None)
        assert (outcome.tokens is not None) == bool(asked.get("stream"))
        if outcome.tokens is not None:
            (counted,) = re.findall(r'"completion_tokens":(\d+)', answer.text)
            assert int(counted) / 2 <= outcome.tokens <= int(counted)
