"""What replicas answer that embed and rank: nothing of it is believed before it is checked."""

import base64
import json
import struct
from collections.abc import Sequence

import pytest

from blocks.engines.openai import OpenAIEngine
from blocks.engines.pooling import LONGEST_VECTOR, NoAnswer, scores_in, vectors_in
from blocks.errors import Unavailable, Unsound
from blocks.ports.engine import Prompt
from blocks.ports.fleet import Replica
from tests.servers import canned_server

VECTOR = Prompt("hello", 1, "vector")
RANKING = Prompt("hello", 1, "ranking", ("a", "b"))


def embeddings(*vectors: object, **others: object) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return json.dumps({"data": data, **others}).encode()


def ranking(*ranked: tuple[object, object]) -> bytes:
    return json.dumps({"results": [{"index": i, "relevance_score": score} for i, score in ranked]}).encode()


def packed(numbers: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_vectors_come_in_the_order_of_their_inputs() -> None:
    """Whatever the order in the list is; in base64 as in numbers, whole ones among them."""
    body = json.dumps(
        {"data": [{"index": 1, "embedding": [0.5, 1]}, {"index": 0, "embedding": packed([0.25, -2.0])}]}
    ).encode()
    assert vectors_in(body, 2) == ((0.25, -2.0), (0.5, 1.0))


def test_scores_come_in_the_order_of_their_documents() -> None:
    """Which is not that of the ranking."""
    assert scores_in(ranking((2, 0.9), (0, 0.5), (1, -3)), 3) == (0.5, -3.0, 0.9)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (embeddings([0.5], [0.25]), "2 vectors came for 1 inputs"),
        (embeddings(), "0 vectors came for 1 inputs"),
        (embeddings([0.0, 0.0]), "a vector of 2 numbers is all zeros"),
        (embeddings([1e-9, -1e-9]), "a vector of 2 numbers is all zeros"),
        (embeddings([]), "a vector of 0 numbers is all zeros"),
        (embeddings(packed([0.0, 0.0])), "a vector of 2 numbers is all zeros"),
        (embeddings([0.5, None]), "None stands where a finite number should"),
        (embeddings([0.5, "1"]), "'1' stands where a finite number should"),
        (embeddings([0.5, True]), "True stands where a finite number should"),
        (embeddings([0.5, [1]]), "list stands where a finite number should"),
        (embeddings([0.5, float("nan")]), "nan stands where a finite number should"),
        (embeddings([0.5, float("inf")]), "inf stands where a finite number should"),
        (embeddings([0.5, 10**400]), "1000.* stands where a finite number should"),
        (embeddings(packed([0.5, float("nan")])), "not finite"),
        (embeddings("AAA"), "nor base64"),
        (embeddings("AAAA"), "3 bytes, which are no float32 numbers"),
        (embeddings(packed([0.5] * (LONGEST_VECTOR + 1))), "no float32 numbers of one vector"),
        (embeddings([0.5] * (LONGEST_VECTOR + 1)), "no list of at most 65,536 numbers"),
        (embeddings(None), "no list of at most"),
        (embeddings({"a": 1}), "no list of at most"),
        (b'{"data": [{"index": 1, "embedding": [1]}]}', "an index is 1, where each from 0 to 0 comes once"),
        (b'{"data": [{"embedding": [1]}]}', "an index is None"),
        (b'{"data": [7]}', "an index is None"),
        (embeddings([0.5], usage={"prompt_tokens": -1}), "its usage counts -1 tokens"),
        (embeddings([0.5], usage={"prompt_tokens": "7"}), "its usage counts '7' tokens"),
    ],
)
def test_what_is_no_vector_is_said(body: bytes, words: str) -> None:
    """Too many, none, zeros, no numbers, no finite ones, too long, in no order."""
    with pytest.raises(Unsound, match=words):
        vectors_in(body, 1)
    with canned_server(200, body=body) as server:
        answer = OpenAIEngine().ask(at(server.address), VECTOR)
    assert (answer.status, answer.is_whole, answer.vector) == (200, True, ())
    assert answer.unsound


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (ranking((0, 0.5)), "1 documents were ranked of 2"),
        (ranking((0, 0.5), (1, 0.4), (2, 0.3)), "3 documents were ranked of 2"),
        (ranking((0, 0.5), (0, 0.4)), "an index is 0, where each from 0 to 1 comes once"),
        (ranking((0, 0.5), (2, 0.4)), "an index is 2"),
        (ranking((0, 0.5), (-1, 0.4)), "an index is -1"),
        (ranking((0, 0.5), ("1", 0.4)), "an index is '1'"),
        (ranking((0, 0.4), (1, 0.5)), "does not begin with the best score"),
        (ranking((0, 0.5), (1, None)), "None stands where a finite number should"),
        (ranking((0, float("nan")), (1, 0.5)), "nan stands where a finite number should"),
    ],
)
def test_what_is_no_ranking_is_said(body: bytes, words: str) -> None:
    """Not of all documents, not each once, not the best first, no numbers."""
    with pytest.raises(Unsound, match=words):
        scores_in(body, 2)
    with canned_server(200, body=body) as server:
        assert OpenAIEngine().ask(at(server.address), RANKING).unsound


def test_a_model_that_tells_nothing_apart_is_not_ready() -> None:
    """One vector for three texts, one score for three documents: it answers, and of no use."""
    body = embeddings(*[[0.5, 0.5]] * 3)
    with canned_server(200, body=body) as server, pytest.raises(Unsound, match="different texts have the same vector"):
        OpenAIEngine().complete(at(server.address), "embedding")
    body = ranking((0, 0.5), (1, 0.5), (2, 0.5))
    with canned_server(200, body=body) as server, pytest.raises(Unsound, match=r"documents all have the score 0\.5"):
        OpenAIEngine().complete(at(server.address), "rerank")


def test_vectors_of_two_lengths_in_one_answer_are_of_no_use() -> None:
    """No index takes both."""
    with pytest.raises(Unsound, match="the vectors of one answer have 1 and 2 numbers"):
        vectors_in(embeddings([0.5], [0.5, 0.5]), 2)


@pytest.mark.parametrize(
    ("body", "error_status"),
    [
        (b"no JSON", None),
        (b"", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b'{"data": {}}', None),
        (b'{"error": {"message": "too long", "code": 400}}', 400),
    ],
)
@pytest.mark.parametrize("prompt", [VECTOR, RANKING])
def test_what_is_another_form_is_no_answer(prompt: Prompt, body: bytes, error_status: int | None) -> None:
    """Not a broken model's: it is asked again, and the error in it is told by its status."""
    with pytest.raises(NoAnswer):
        vectors_in(body, 1)
    with canned_server(200, body=body) as server:
        answer = OpenAIEngine().ask(at(server.address), prompt)
        with pytest.raises(Unavailable, match="answered HTTP 200 and no embedding"):
            OpenAIEngine().complete(at(server.address), "embedding")
    assert (answer.status, answer.is_whole, answer.unsound, answer.error_status) == (200, False, "", error_status)


@pytest.mark.parametrize("status", [400, 404, 500, 501, 503])
def test_a_vector_under_an_error_is_none(status: int) -> None:
    """Whatever stands in the body."""
    with canned_server(status, body=embeddings([0.5])) as server:
        answer = OpenAIEngine().ask(at(server.address), VECTOR)
    assert (answer.status, answer.is_whole, answer.vector) == (status, False, ())


def at(address: str) -> Replica:
    return Replica("search-1a-0", "search", "1a", "here", address)
