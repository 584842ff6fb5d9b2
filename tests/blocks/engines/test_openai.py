"""What replicas on rented machines may say to whoever asks them directly, and what it does not do there."""

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from blocks.engines.openai import MOST_BYTES, OpenAIEngine
from blocks.errors import Unavailable
from blocks.ports.engine import Prompt
from blocks.ports.fleet import Replica
from tests.servers import canned_server

ENGINE = OpenAIEngine(probe_timeout_seconds=0.3, completion_timeout_seconds=0.3)
PROMPT = Prompt("Say hello.", 8, "text")
WORD = b'data: {"choices":[{"delta":{"content":"so"}}]}\n\n'
GOOD = WORD + b"data: [DONE]\n\n"
STREAM = "text/event-stream"


def at(address: str) -> Replica:
    return Replica("r-1", "chat", "chat-1", "local", address)


@contextmanager
def saying(head: bytes, again: bytes, pause_seconds: float) -> Iterator[str]:
    """Says the first, and the second again and again until whoever asks has gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # whoever asked has gone, or the test is over
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(head)
                        for _ in itertools.count():
                            connection.sendall(again)
                            time.sleep(pause_seconds)

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


ENDLESS = {
    "a body": (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", b": \n"),
    "a head": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "promises of an answer": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_replica_that_never_comes_to_an_end_is_not_waited_for(what: str) -> None:
    """A byte now and then keeps nobody: neither whoever waits until it is healthy nor whoever rolls back."""
    head, again = ENDLESS[what]
    with saying(head, again, 0.02) as address:
        assert ENGINE.is_healthy(at(address)) == (what == "a body")
        assert ENGINE.load(at(address)) is None
        with pytest.raises(Unavailable, match="gave no completion"):
            ENGINE.complete(at(address))
        assert not ENGINE.ask(at(address), PROMPT).is_whole


def test_a_flood_is_no_answer_and_fills_no_memory() -> None:
    """However fast it comes, and though it says that it is over."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {STREAM}\r\n\r\n".encode() + GOOD
    with saying(head, WORD * 20_000, 0) as address:
        patient = OpenAIEngine()
        assert patient.is_healthy(at(address))
        assert patient.load(at(address)) is None
        with pytest.raises(Unavailable, match=f"sent more than {MOST_BYTES} bytes"):
            patient.complete(at(address))
        answer = patient.ask(at(address), PROMPT)
    assert not answer.is_whole
    assert len(answer.text) < MOST_BYTES


def test_what_is_packed_is_neither_asked_for_nor_unpacked() -> None:
    """A few bytes could be as many as fill all memory."""
    headers = {"Content-Type": STREAM, "Content-Encoding": "gzip"}
    with canned_server(200, headers, gzip.compress(GOOD)) as server:
        answer = ENGINE.ask(at(server.address), PROMPT)
        assert ENGINE.load(at(server.address)) is None
    assert (answer.is_whole, answer.tokens) == (False, 0)
    assert {asked["accept-encoding"] for _, _, asked in server.requests} == {"identity"}


@pytest.mark.parametrize(
    ("headers", "is_whole"),
    [
        ({"Content-Type": "Text/Event-Stream; charset=utf-8"}, True),
        ({"Content-Type": STREAM, "Content-Encoding": "identity"}, True),
        ({"Content-Type": "text/html"}, False),
        ({}, False),
    ],
)
def test_what_is_no_answer_by_its_head_is_none(headers: dict[str, str], *, is_whole: bool) -> None:
    """As at the gateway."""
    with canned_server(200, headers, GOOD) as server:
        assert ENGINE.ask(at(server.address), PROMPT).is_whole == is_whole


def test_an_answer_in_one_piece_is_known_by_its_type_in_any_case() -> None:
    """As at the gateway."""
    body = json.dumps({"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}).encode()
    with canned_server(200, {"Content-Type": "Application/JSON"}, body) as server:
        assert ENGINE.ask(at(server.address), PROMPT).text == "so"


@pytest.mark.parametrize("charset", ["base64", "hex", "zlib", "bz2", "rot13", "idna", "undefined", "utf-7", "none"])
def test_no_replica_chooses_how_its_words_are_decoded(charset: str) -> None:
    """Python knows codings that are none of text."""
    page = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"
    with canned_server(200, {"Content-Type": f"text/plain; charset={charset}"}, page) as server:
        load = ENGINE.load(at(server.address))
        assert load is not None
        assert load.in_flight == 3
        with pytest.raises(Unavailable, match="HTTP 200 and no completion: 'vllm:num_requests_running 1"):
            ENGINE.complete(at(server.address))


def test_numbers_that_add_up_to_none_are_no_load() -> None:
    """Two that are finite may be infinite together."""
    page = (
        b'vllm:num_requests_running{a="1"} 1e308\nvllm:num_requests_running{a="2"} 1e308\nvllm:num_requests_waiting 0\n'
    )
    with canned_server(200, body=page) as server:
        assert ENGINE.load(at(server.address)) is None
