"""How the probes read answers, by the examples that the gateway reads them by as well."""

import json
import random

import pytest

from blocks.engines.answers import AnswerReader
from tests.gateway.examples import EXAMPLES, LONG_RESPONSE, Example


def read(example: Example, step: int) -> AnswerReader:
    reader = AnswerReader(example.kind, is_stream=example.is_stream)
    body = example.body.encode()
    for start in range(0, len(body), step):
        reader.read(body[start : start + step])
    return reader


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_answer_is_read_however_it_is_cut(example: Example, step: int) -> None:
    """Byte by byte, in pieces, and whole."""
    reader = read(example, step)
    assert reader.verdict() == example.amiss
    assert reader.error_status == example.error_status
    if example.tokens is not None:
        assert reader.tokens == example.tokens


@pytest.mark.parametrize("step", [None, 1, 7, 65536 + 6, 65536 + 7])
def test_what_is_too_long_to_be_looked_into_is_told_by_its_name(step: int | None) -> None:
    """Wherever it is cut: no token in what a response begins with, and a good end in what it ends in."""
    body = "".join(LONG_RESPONSE)
    pieces = LONG_RESPONSE if step is None else [body[n : n + step] for n in range(0, len(body), step)]
    reader = AnswerReader("response", is_stream=True)
    for piece in pieces:
        reader.read(piece.encode())
    assert (reader.verdict(), reader.tokens) == ("no", 1)


def test_what_is_said_is_kept() -> None:
    """Text, thoughts, and what a tool is called with."""
    reader = AnswerReader("chat", is_stream=True)
    for delta in (
        {"reasoning": "Hm"},
        {"content": "so"},
        {"content": " it"},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a'}}]},
        {"tool_calls": [{"function": {"arguments": '": 1}'}}, {"function": None}, 7]},
    ):
        reader.read(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode())
    assert (reader.text, reader.has_thought, reader.tool_arguments) == ("so it", True, '{"a": 1}')


def test_what_is_hostile_is_read_to_its_end() -> None:
    """Lines without an end, bytes that are no text, and anything in the place of anything: nothing is raised."""
    chance = random.Random(13)  # noqa: S311 - the same each time
    values = ["null", "[]", "{}", '"abort"', "1e400", "-1", "true", '["x"]', '{"a":[]}', '"\\ud800"', "\x00", "\xff"]
    for _ in range(300):
        body = "data: " + "".join(
            chance.choice([f'{{"{name}":{chance.choice(values)}}}', "\n\ndata: ", ",", "event: error\r"])
            for name in chance.choices(["choices", "error", "type", "usage", "delta", "response", "object"], k=20)
        )
        for is_stream in (True, False):
            reader = AnswerReader("chat", is_stream=is_stream)
            reader.read(body.encode(errors="surrogateescape"))
            assert reader.verdict() in {"no", "empty", "cut", "error"}
    for endless in (b"data: " + b"x" * 1_000_000, b"data: x\n" * 100_000, b"[" * 1_000_000, b"\n" * 1_000_000):
        reader = AnswerReader("chat", is_stream=True)
        reader.read(endless)
        reader.read(b"\n\ndata: [DONE]\n\n")
        assert reader.verdict() in {"no", "empty"}
