"""How the request log of HAProxy is read, on lines that HAProxy wrote, and how the block is set up."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from blocks.errors import Refused, Unavailable
from blocks.haproxy.gateway import HAProxyGateway, read_line, read_log
from blocks.ports.gateway import Outcome

WORKER = "7acf6d31-fb65-425c-b9d9-773f5beb7cb4"

PLAIN = (
    f'{{"id":"{WORKER}-21","n":1,"accepted":1795399316.509,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":1,"Tr":0,"Ta":2,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"no","in":195,"out":159,"user":"81B637D8FCD2C6DA"}'
)
FAILED = (
    f'{{"id":"{WORKER}-22","n":2,"accepted":1795399316.547,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":500,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":2,"Ta":2,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"no","in":208,"out":178,"user":"81B637D8FCD2C6DA"}'
)
BROKEN_OFF = (
    f'{{"id":"{WORKER}-24","n":4,"accepted":1795399316.927,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"SD","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":1,"Ta":302,'
    '"ttft":"101.7","last":"201.8","tokens":"2","amiss":"no","in":258,"out":224,"user":"81B637D8FCD2C6DA"}'
)
LEFT_BEFORE = (
    f'{{"id":"{WORKER}-25","n":5,"accepted":1795399317.253,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":400,"end":"CH","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":-1,"Ta":302,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"-","in":200,"out":206,"user":"-"}'
)
LEFT_IN_THE_MIDDLE = (
    f'{{"id":"{WORKER}-26","n":6,"accepted":1795399317.591,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"CD","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":1,"Tr":0,"Ta":105,'
    '"ttft":"101.7","last":"101.7","tokens":"1","amiss":"no","in":233,"out":188,"user":"-"}'
)
ON_A_KEPT_CONNECTION = (
    f'{{"id":"{WORKER}-28","n":8,"accepted":1795399317.732,"idle":502,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":1,"Ta":1,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"no","in":183,"out":159,"user":"-"}'
)
NO_REQUEST_AT_ALL = (
    f'{{"id":"{WORKER}-30","n":10,"accepted":1795399319.238,"idle":0,"be":"chat","srv":"<NOSRV>","ip":"-","port":"-",'
    '"status":400,"end":"PR","retries":"0","unanswered":"-","TR":-1,"Tw":-1,"Tc":-1,"Tr":-1,"Ta":0,"ttft":"-","last":"-","tokens":"-","amiss":"-","in":0,'
    '"out":0,"user":"-"}'
)
RETRIED_ELSEWHERE = (
    f'{{"id":"{WORKER}-36","n":13,"accepted":1795399320.057,"idle":0,"be":"chat-green","srv":"to_blue","ip":"unix",'
    '"port":"0","status":200,"end":"--","retries":"+1","unanswered":"-","TR":0,"Tw":1002,"Tc":0,"Tr":2,"Ta":1004,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"no","in":195,"out":159,"user":"81B637D8FCD2C6DA"}'
)
NOBODY_LEFT = (
    f'{{"id":"{WORKER}-40","n":15,"accepted":1795399321.143,"idle":0,"be":"chat-green","srv":"to_blue","ip":"unix",'
    '"port":"0","status":503,"end":"--","retries":"0","unanswered":"1","TR":0,"Tw":0,"Tc":0,"Tr":1002,"Ta":1002,'
    '"ttft":"-","last":"-","tokens":"-","amiss":"-","in":195,"out":235,"user":"81B637D8FCD2C6DA"}'
)

STREAMED = (
    f'{{"id":"{WORKER}-41","n":16,"accepted":1795542867.842,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":6,"Ta":134,'
    '"ttft":"28.7","last":"134.0","tokens":"6","amiss":"no","in":247,"out":369,"user":"81B637D8FCD2C6DA"}'
)
EMPTY = (
    f'{{"id":"{WORKER}-42","n":17,"accepted":1795542867.978,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":0,"Ta":21,'
    '"ttft":"-","last":"-","tokens":"0","amiss":"empty","in":264,"out":150,"user":"81B637D8FCD2C6DA"}'
)
ENDED_IN_AN_ERROR = (
    f'{{"id":"{WORKER}-43","n":18,"accepted":1795542868.001,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":0,"Tr":0,"Ta":21,'
    '"ttft":"0.8","last":"0.8","tokens":"1","amiss":"error","in":320,"out":195,"user":"81B637D8FCD2C6DA"}'
)
FROM_AN_OLDER_CONFIGURATION = (
    f'{{"id":"{WORKER}-44","n":19,"accepted":1795399316.509,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","TR":0,"Tw":0,"Tc":1,"Tr":0,"Ta":2,'
    '"ttft":"2.4","in":195,"out":159,"user":"81B637D8FCD2C6DA"}'
)

ADDRESS = "127.0.0.1:44085"


def outcome_of(line: str) -> Outcome:
    read = read_line(line)
    assert read is not None
    return read.outcome


def test_a_good_answer_is_read_whole() -> None:
    """Every part of an outcome comes from its line."""
    assert outcome_of(STREAMED) == Outcome(
        id=f"{WORKER}-41",
        at=1795542867.842,
        slot="blue",
        address=ADDRESS,
        status=200,
        first_token_ms=28.7,
        tokens=6,
        per_token_ms=pytest.approx((134.0 - 28.7) / 5),  # pyright: ignore[reportArgumentType] - stands in for a float
        total_ms=134,
        user="81B637D8FCD2C6DA",
        retried=False,
        by_fallback=False,
        cut_short=False,
        is_empty=False,
        user_left=False,
    )


@pytest.mark.parametrize(
    ("line", "slot", "address", "status", "marks"),
    [
        pytest.param(FAILED, "blue", ADDRESS, 500, set(), id="the replica answered with an error"),
        pytest.param(BROKEN_OFF, "blue", ADDRESS, 200, {"cut_short"}, id="the replica broke off"),
        pytest.param(ENDED_IN_AN_ERROR, "blue", ADDRESS, 200, {"cut_short"}, id="a stream ended in an error"),
        pytest.param(EMPTY, "blue", ADDRESS, 200, {"is_empty"}, id="a stream of nothing"),
        pytest.param(EMPTY.replace('"--"', '"CD"'), "blue", ADDRESS, 200, {"user_left"}, id="the user did not wait"),
        pytest.param(EMPTY.replace('"--"', '"SD"'), "blue", ADDRESS, 200, {"cut_short"}, id="nothing, and broken off"),
        pytest.param(LEFT_BEFORE, "blue", ADDRESS, -1, {"user_left"}, id="the user left before the answer"),
        pytest.param(LEFT_IN_THE_MIDDLE, "blue", ADDRESS, 200, {"user_left"}, id="the user left in the middle"),
        pytest.param(NO_REQUEST_AT_ALL, None, None, 400, set(), id="what came was no HTTP"),
        pytest.param(RETRIED_ELSEWHERE, "green", None, 200, {"retried", "by_fallback"}, id="the other slot answered"),
        pytest.param(NOBODY_LEFT, "green", None, 503, set(), id="nobody answered"),
    ],
)
def test_trouble_is_told_apart(line: str, slot: str | None, address: str | None, status: int, marks: set[str]) -> None:
    """Who failed, whom the user left, and who stood in is read from how HAProxy says that the request ended."""
    outcome = outcome_of(line)
    assert (outcome.slot, outcome.address, outcome.status) == (slot, address, status)
    names = ("retried", "by_fallback", "cut_short", "is_empty", "user_left")
    assert {name for name in names if getattr(outcome, name)} == marks


@pytest.mark.parametrize("line", [FAILED, LEFT_BEFORE, NOBODY_LEFT, STREAMED.replace('"status":200', '"status":500')])
def test_an_error_has_no_tokens(line: str) -> None:
    """What an error says is no answer, and quick errors must not look like speed."""
    outcome = outcome_of(line)
    assert (outcome.first_token_ms, outcome.tokens, outcome.per_token_ms) == (None, None, None)


def test_a_gateway_that_does_not_count_yet_is_read_as_well() -> None:
    """Its configuration was written by an older Skyferry: it knows the first token, and nothing of the others."""
    outcome = outcome_of(FROM_AN_OLDER_CONFIGURATION)
    assert (outcome.first_token_ms, outcome.tokens, outcome.per_token_ms, outcome.is_empty) == (2.4, None, None, False)


@pytest.mark.parametrize(("tokens", "known"), [(4, False), (5, True)])
def test_a_few_tokens_have_no_pace(tokens: int, known: bool) -> None:  # noqa: FBT001 - a parametrised flag
    """It takes a handful."""
    assert (outcome_of(STREAMED.replace('"6"', f'"{tokens}"')).per_token_ms is not None) == known


def test_a_request_begins_when_it_comes_and_not_when_the_one_before_it_ended() -> None:
    """On a kept connection HAProxy starts its clock at the end of the last request; the idle time is added."""
    assert outcome_of(ON_A_KEPT_CONNECTION).at == pytest.approx(1795399318.234)


def test_an_ipv6_replica_is_named_as_it_was_attached() -> None:
    """HAProxy logs the bare address; ours stands in brackets."""
    assert outcome_of(PLAIN.replace("127.0.0.1", "2001:db8::7")).address == "[2001:db8::7]:44085"


@pytest.mark.parametrize(
    "line", ["", "Server chat-blue/r1 is DOWN, reason: Layer4 timeout", "Proxy chat stopped (FE)."]
)
def test_what_haproxy_says_in_words_is_passed_over(line: str) -> None:
    """Its own messages are no requests."""
    assert read_line(line) is None
    reading = read_log(f"{PLAIN}\n{line}\n{FAILED}\n{line}", WORKER, f"{WORKER}-21")
    assert [outcome.status for outcome in reading.outcomes] == [500]
    assert (reading.cursor, reading.is_complete) == (f"{WORKER}-22", True)


@pytest.mark.parametrize(
    "line",
    [
        PLAIN[: len(PLAIN) // 2],
        PLAIN.replace('"unanswered":"-"', '"unanswered":"x","x":""","'),
        PLAIN.replace('"amiss":"no"', '"amiss":"unread"'),
        PLAIN.replace('"end":"--"', '"end":""'),
        PLAIN.replace('"status":200', '"status":"many"'),
        "{}",
    ],
)
def test_a_request_that_cannot_be_read_is_missing(line: str) -> None:
    """The rest is told; of that one nobody knows what it says, so the reading is not complete."""
    assert read_line(line) is None
    reading = read_log(f"{PLAIN}\n{line}\n{FAILED}", WORKER, f"{WORKER}-21")
    assert ([outcome.status for outcome in reading.outcomes], reading.is_complete) == ([500], False)
    assert read_log(f"{line}\n{PLAIN}\n{FAILED}", WORKER, f"{WORKER}-21").is_complete


NEW = (
    f'{{"id":"{WORKER}-50","n":20,"accepted":1795542867.842,"idle":0,"be":"chat-blue","srv":"r1","ip":"127.0.0.1",'
    '"port":"44085","status":200,"end":"--","retries":"0","unanswered":"-","kind":"chat","repeat":"-","TR":0,"Tw":0,'
    '"Tc":0,"Tr":6,"Ta":134,"ttft":"28.7","last":"134.0","tokens":"6","amiss":"no","error":"-","in":247,"out":369,'
    '"user":"81B637D8FCD2C6DA"}'
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({'"kind":"chat"': '"kind":"embedding"'}, {"kind": "embedding"}),
        ({'"kind":"chat"': '"kind":"-"'}, {"kind": "other"}),
        ({'"repeat":"-"': '"repeat":"1"'}, {"is_repeat": True}),
        ({'"amiss":"no"': '"amiss":"cut"'}, {"cut_short": True}),
        ({'"amiss":"no"': '"amiss":"error"'}, {"cut_short": True}),
        ({'"amiss":"no"': '"amiss":"error"', '"error":"-"': '"error":"503"'}, {"cut_short": True, "error_status": 503}),
        ({'"amiss":"no"': '"amiss":"error"', '"error":"-"': '"error":"400"'}, {"error_status": 400}),
        ({'"amiss":"no"': '"amiss":"cut"', '"--"': '"CD"'}, {"user_left": True}),
        ({'"amiss":"no"': '"amiss":"cut"', '"--"': '"cD"'}, {"user_left": True}),
        ({'"amiss":"no"': '"amiss":"cut"', '"--"': '"sD"'}, {"cut_short": True}),
        ({'"--"': '"CD"'}, {}),
        ({'"--"': '"CD"', '"kind":"chat"': '"kind":"speech"'}, {"user_left": True, "kind": "speech"}),
        ({'"--"': '"CD"', '"tokens":"6"': '"tokens":"-"'}, {"user_left": True, "tokens": None, "per_token_ms": None}),
    ],
)
def test_what_a_gateway_says_of_a_request_is_read(changes: dict[str, str], expected: dict[str, object]) -> None:
    """What was asked, whether again, how the answer ended, and that who goes once it has ended has not left."""
    line = NEW
    for old, new in changes.items():
        assert old in line
        line = line.replace(old, new)
    assert outcome_of(line) == replace(outcome_of(NEW), **expected)


def test_a_cursor_that_has_left_the_log_marks_the_reading_incomplete() -> None:
    """The ring has turned once round since: what is there is told, and that more was lost."""
    reading = read_log(f"{PLAIN}\n{FAILED}\n", WORKER, f"{WORKER}-3")
    assert (len(reading.outcomes), reading.cursor, reading.is_complete) == (2, f"{WORKER}-22", False)


def test_a_log_that_was_empty_and_has_turned_round_is_incomplete() -> None:
    """From an empty log on, the first line has to be the worker's first."""
    assert read_log(PLAIN, WORKER, WORKER).is_complete
    assert not read_log(PLAIN.replace('"n":1,', '"n":20000,'), WORKER, WORKER).is_complete


def test_a_worker_that_was_replaced_has_taken_its_log_along() -> None:
    """After a reload the cursor of the old worker is in no log, not even in an empty one."""
    reading = read_log("\n", "next-worker", f"{WORKER}-22")
    assert (reading.outcomes, reading.cursor, reading.is_complete) == ((), "next-worker", False)


TLS = {
    "admin_address": "gateway.example.org:8405",
    "client_certificate": "certificate",
    "client_key": SecretStr("-----BEGIN PRIVATE KEY-----\nthe-private-key"),
    "ca_certificate": "authority",
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"admin_socket": Path("/run/admin.sock"), **TLS}]
    + [{name: value for name, value in TLS.items() if name != left_out} for left_out in TLS]
    + [{**TLS, "admin_address": "gateway.example.org"}],
)
def test_there_is_exactly_one_way_in(settings: dict[str, object]) -> None:
    """Either the socket, or the address with all that mutual TLS needs."""
    with pytest.raises(ValidationError):
        HAProxyGateway.model_validate(settings)


def test_a_word_cannot_smuggle_in_a_command() -> None:
    """HAProxy takes several commands on a line: a name with a semicolon is refused before it is sent."""
    gateway = HAProxyGateway(admin_socket=Path("/nowhere/admin.sock"))
    for word in ("chat;shutdown sessions server chat-blue/r1", "chat\nshow info", "chat info", ""):
        with pytest.raises(Refused, match="cannot be part of a gateway command"):
            gateway.split(word)


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message says which gateway was looked for."""
    with pytest.raises(Unavailable, match=r"admin\.sock"):
        HAProxyGateway(admin_socket=tmp_path / "admin.sock").split("chat")


def test_the_key_is_not_shown() -> None:
    """Whoever prints the block does not print the key."""
    assert "the-private-key" not in repr(HAProxyGateway.model_validate(TLS))
