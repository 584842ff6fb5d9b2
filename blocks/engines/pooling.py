"""What models answer that embed and rank: vectors and scores, of which nothing is believed before it is checked.

The forms: https://platform.openai.com/docs/api-reference/embeddings/object, and for rankings, which OpenAI has none of,
Jina's and Cohere's as vLLM and llama.cpp serve them (`results` of `index` and `relevance_score`).
"""

import base64
import json
import struct
from collections.abc import Sequence
from math import hypot, isfinite
from typing import Any

from blocks.errors import Unsound

LONGEST_VECTOR = 65_536
"""Numbers; embedding models of today have up to 8,192."""
NEXT_TO_NOTHING = 1e-6
"""The length of a vector below which it points nowhere."""
FLOAT_BYTES = 4
"""Of each number in base64: float32, little-endian, as OpenAI's own client reads it."""


class NoAnswer(ValueError):
    """The body is of another form than what was asked for."""


def vectors_in(body: bytes, inputs: int) -> tuple[tuple[float, ...], ...]:
    """One vector an input, in the inputs' order.

    NoAnswer where the body is no list of embeddings; Unsound where they are not one an input, not all of one length,
    zeros, or no finite numbers.
    """
    answer = _object(body)
    data = _list(answer, "data")
    _check_usage(answer)
    if len(data) != inputs:
        raise Unsound(f"{len(data)} vectors came for {inputs} inputs")
    vectors = [_vector(each.get("embedding")) for each in _in_order(data, inputs)]
    if len(lengths := {len(vector) for vector in vectors}) > 1:
        raise Unsound(f"the vectors of one answer have {' and '.join(map(str, sorted(lengths)))} numbers")
    return tuple(vectors)


def scores_in(body: bytes, documents: int) -> tuple[float, ...]:
    """One score a document, in the order in which the documents were handed over.

    NoAnswer where the body is no ranking; Unsound where it is not one of all documents, each once and the best
    first, or a score is no finite number.
    """
    answer = _object(body)
    results = _list(answer, "results")
    _check_usage(answer)
    if len(results) != documents:
        raise Unsound(f"{len(results)} documents were ranked of {documents}")
    ranked = [_finite(each.get("relevance_score")) for each in results if isinstance(each, dict)]
    if ranked != sorted(ranked, reverse=True):
        raise Unsound("the ranking does not begin with the best score")
    return tuple(_finite(each.get("relevance_score")) for each in _in_order(results, documents))


def check_they_differ(vectors: Sequence[tuple[float, ...]]) -> None:
    """Unsound where different texts have one vector: a model that embeds nothing of what it reads."""
    if len(set(vectors)) < len(vectors):
        raise Unsound("different texts have the same vector")


def check_they_rank(scores: Sequence[float]) -> None:
    """Unsound where all documents have one score: a model that ranks nothing."""
    if len(set(scores)) == 1:
        raise Unsound(f"different documents all have the score {scores[0]:g}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise NoAnswer("it is no JSON") from None
    if not isinstance(answer, dict):
        raise NoAnswer("it is no JSON object")
    return answer


def _list(answer: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(found := answer.get(name), list):
        raise NoAnswer(f"it has no list {name!r}")
    return found


def _in_order(items: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """By their indices, each of which has to be there once."""
    by_index: dict[int, dict[str, Any]] = {}
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count or index in by_index:
            raise Unsound(f"an index is {_shown(index)}, where each from 0 to {count - 1} comes once")
        by_index[index] = item
    return [by_index[index] for index in range(count)]


def _vector(said: object) -> tuple[float, ...]:
    if isinstance(said, str):
        numbers = _numbers_in_base64(said)
    elif isinstance(said, list) and len(said) <= LONGEST_VECTOR:
        numbers = tuple(_finite(number) for number in said)
    else:
        raise Unsound(f"a vector is no list of at most {LONGEST_VECTOR:,} numbers, nor base64")
    if not all(map(isfinite, numbers)):
        raise Unsound("a vector has a number that is not finite")
    if hypot(*numbers) < NEXT_TO_NOTHING:
        raise Unsound(f"a vector of {len(numbers)} numbers is all zeros")
    return numbers


def _numbers_in_base64(text: str) -> tuple[float, ...]:
    try:
        packed = base64.b64decode(text, validate=True)
    except ValueError:
        raise Unsound("a vector is no list of numbers, nor base64") from None
    count, rest = divmod(len(packed), FLOAT_BYTES)
    if rest or count > LONGEST_VECTOR:
        raise Unsound(f"a vector in base64 has {len(packed):,} bytes, which are no float32 numbers of one vector")
    return struct.unpack(f"<{count}f", packed)


def _finite(number: object) -> float:
    try:
        if isinstance(number, int | float) and not isinstance(number, bool) and isfinite(number):
            return float(number)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise Unsound(f"{_shown(number)} stands where a finite number should")


def _check_usage(answer: dict[str, Any]) -> None:
    """Where it is given."""
    usage = answer.get("usage")
    tokens = usage.get("prompt_tokens", 0) if isinstance(usage, dict) else 0
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise Unsound(f"its usage counts {_shown(tokens)} tokens")


def _shown(value: object) -> str:
    """As much of it as a person reads at a glance; of what holds more, only what it is."""
    return repr(value)[:20] if isinstance(value, int | float | str | None) else type(value).__name__
