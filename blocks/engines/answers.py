"""What a good answer is: it ends well only if it says so in its protocol, and is empty only if nothing was generated.

The gateway goes by the same, in deployments/haproxy/answers.lua; tests/gateway/answers.yaml has the examples for both.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from blocks.ports.gateway import RequestKind

GENERATING: frozenset[RequestKind] = frozenset({"chat", "completion", "response", "message"})
"""The kinds of request that ask for words; of others it is only told where they end in an error."""

KEPT_BYTES = 65536
"""Of an event, or of an answer that is not streamed, no more than this is kept. What is longer is not looked into."""

FIELD_BYTES = 16
"""The longest that stands before an event's data on its line, and some more."""

DEEPEST = 32
"""What is nested deeper is not looked into."""

GOOD_ENDS = frozenset(
    {
        *("stop", "length", "tool_calls", "function_call", "content_filter"),
        *("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal"),
        "model_context_window_exceeded",
        "eos_token",  # of older text-generation-inference, which says nothing after it
    }
)
BAD_ENDS = frozenset({"abort", "error", "cancelled", "failed"})
AT_THE_LIMIT = frozenset({"length", "max_tokens", "model_context_window_exceeded", "incomplete"})
"""Where the user's own limit ended it there may be nothing to see."""

GOES_ON = frozenset({"queued", "in_progress"})
"""A response that its user fetches later; there is nothing to see of it yet."""

ERRORS = range(400, 600)
"""HTTP's."""

STATUS_OF: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "api_error": 500,
    "overloaded_error": 529,
}
"""What names its error and has no number for it."""

Verdict = Literal["no", "empty", "cut", "error"]
"""What was amiss."""

Form = Literal["stream", "json", "none"]
"""How an answer is to be read; none where it cannot be."""


def form_of(content_type: str, content_encoding: str) -> Form:
    """By its head. What is packed cannot be read, and no replica is asked to pack anything."""
    said = content_type.lower()
    if content_encoding.lower() not in {"", "identity"}:
        return "none"
    return (
        "stream" if said.startswith("text/event-stream") else "json" if said.startswith("application/json") else "none"
    )


BOM = b"\xef\xbb\xbf"

_TOO_DEEP = object()
_NO_JSON = object()


@dataclass
class AnswerReader:
    """Reads an answer piece by piece, as it comes."""

    kind: RequestKind
    is_stream: bool
    tokens: int = 0
    """The events that said something, of a stream."""
    text: str = ""
    tool_arguments: str | None = None
    has_thought: bool = False
    error_status: int | None = None
    """What the error said that it ended in, where it named a status."""
    _rest: bytes = b""
    _name: str = ""
    _data: list[bytes] = field(default_factory=list[bytes])
    _size: int = 0
    _has_begun: bool = False
    _ended_in_return: bool = False
    _is_broken: bool = False
    _has_ended: bool = False
    _is_finished: bool = False
    _is_at_limit: bool = False
    _is_said: bool = False
    _generated: float | None = None

    def read(self, piece: bytes) -> None:
        """However it is cut."""
        if self.is_stream:
            self._read_lines(piece)
        elif self._size <= KEPT_BYTES:
            self._size += len(piece)
            self._data.append(piece)

    def verdict(self) -> Verdict:
        """Once all has come."""
        if self.is_stream:
            # An event whose blank line never came is one all the same, as OpenAI's own client reads it.
            self._take_line(self._rest)
            self._take_line(b"")
            self._rest = b""
        else:
            self._take_body()
        if self._is_broken:
            return "error"
        if self.kind not in GENERATING:
            return "no"
        if self.is_stream and not self._has_ended:
            return "cut"
        generated = int(self._is_finished) if self._generated is None else self._generated
        return "no" if self._is_said or self._is_at_limit or generated > 0 else "empty"

    def _read_lines(self, piece: bytes) -> None:
        if self._ended_in_return:
            piece = piece.removeprefix(b"\n")
        self._ended_in_return = piece.endswith(b"\r")
        text = self._rest + re.sub(rb"\r\n?", b"\n", piece)
        if not self._has_begun:
            if len(text) < len(BOM):
                self._rest = text
                return
            self._has_begun = True
            text = text.removeprefix(BOM)
        *lines, rest = text.split(b"\n")
        for line in lines:
            self._take_line(line)
        self._rest = rest[: KEPT_BYTES + FIELD_BYTES + 1]

    def _take_line(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if line == b"":
            if self._data or self._name or self._size:
                self._dispatch()
        elif not colon:
            return
        elif name == b"data":
            self._size += len(value) + 1
            if self._size <= KEPT_BYTES:
                self._data.append(value)
        elif name == b"event":
            self._name = value[:100].decode(errors="replace")
        elif name == b"error":  # as older llama.cpp says it
            problem = _object_in(value)
            self._fail(problem, problem if isinstance(problem, dict) else {})

    def _dispatch(self) -> None:
        name, data, is_long = self._name, b"\n".join(self._data), self._size > KEPT_BYTES
        self._name, self._data, self._size = "", [], 0
        if is_long:
            self._take_unread(name)
        elif data.strip() == b"[DONE]":
            self._has_ended = True
        elif isinstance(found := _object_in(data), dict):
            self._take(found, name)
        elif found is _TOO_DEEP:
            self._take_unread(name)
        elif name == "error":
            self._fail(None, {})

    def _take_unread(self, name: str) -> None:
        """An event that is too long, or nested too deep, to be looked into: only its name can tell, where it has one.

        What a response begins with and ends in has all of its user's own words and tools in it.
        """
        if name in {"error", "response.failed", "response.cancelled"}:
            self._fail(None, {})
        elif name in {"response.completed", "response.incomplete"}:
            self._is_said = self._has_ended = True
        elif name.endswith("delta") or not name.startswith(("response.", "message_", "content_block_")):
            self._say("something")

    def _take_body(self) -> None:
        body = b"".join(self._data)
        if self._size > KEPT_BYTES:
            self._is_said = True
        elif body.strip():
            found = _object_in(body)
            if isinstance(found, dict):
                self._take(found, "")
                # Of a form that nobody knows nothing is told.
                is_known = found.get("choices") is not None or found.get("object") == "response"
                self._is_said = self._is_said or not (is_known or found.get("type") == "message")
            elif found is _TOO_DEEP:
                self._is_said = True
            else:
                self._is_broken = self.kind in GENERATING

    def _take(self, found: dict[str, Any], name: str) -> None:
        """An event's data, or the whole of an answer that is not streamed."""
        kind = _word(found.get("type")) or name
        error = found.get("error")
        if kind == "error" or found.get("object") == "error" or not (error is None or error is False):
            self._fail(error, found)
            return
        self._take_usage(found.get("usage"))
        if isinstance(found.get("choices"), list):
            self._take_choices(found["choices"])
        elif kind.startswith("response.") and not kind.endswith(".delta"):
            self._take_response_event(kind, _dict(found.get("response")))
        elif found.get("object") == "response":
            self._take_response(found)
        else:
            self._take_of_message(kind, found)

    def _take_response_event(self, kind: str, response: Mapping[str, Any]) -> None:
        """Of `/v1/responses`."""
        if kind in {"response.failed", "response.cancelled"}:
            self._fail(response.get("error"), {})
        elif kind in {"response.completed", "response.incomplete"}:
            self._take_response(response)
            self._is_at_limit = self._is_at_limit or kind == "response.incomplete"

    def _take_of_message(self, kind: str, found: Mapping[str, Any]) -> None:
        """Of `/v1/messages`, whose deltas `/v1/responses` has as well."""
        if kind == "message_stop":
            self._has_ended = True
        elif kind == "message_delta":
            self._end_by(_dict(found.get("delta")).get("stop_reason"))
            self._has_ended = False
        elif kind == "content_block_start":
            self._take_items([found.get("content_block")])
        elif kind == "message":
            self._take_items(found.get("content"))
            self._end_by(found.get("stop_reason"))
        elif kind == "content_block_delta" or kind.endswith(".delta"):
            self._say(_first(found, "delta", "audio"))

    def _fail(self, problem: object, around: Mapping[str, Any]) -> None:
        of = _dict(problem)
        named = (of.get("code"), of.get("status"), of.get("status_code"), around.get("code"), around.get("status"))
        statuses = [status for value in named if (status := _status(value))]
        words = [STATUS_OF.get(_word(of.get(name))) for name in ("type", "code")]
        self._is_broken = True
        self.error_status = self.error_status or next(filter(None, (*statuses, *words)), None)

    def _end_by(self, reason: object) -> None:
        if _word(reason) in BAD_ENDS:
            self._fail(None, {})
        elif _word(reason) in GOOD_ENDS:
            self._has_ended = self._is_finished = True
            self._is_at_limit = self._is_at_limit or reason in AT_THE_LIMIT

    def _say(self, said: object) -> None:
        if _says_something(said):
            self._is_said = True
            self.tokens += self.is_stream

    def _take_usage(self, usage: object) -> None:
        for name in ("completion_tokens", "output_tokens"):
            if isinstance(count := _dict(usage).get(name), int | float) and not isinstance(count, bool):
                self._generated = count
                return

    def _take_choices(self, choices: Sequence[object]) -> None:
        is_token = False
        for choice in filter(None, map(_dict, choices)):
            said = _first(choice, "delta", "message")
            is_token = is_token or _says_something(said) or _is_something(choice.get("text"))
            self._hear(_dict(said))
            self.text += _word(choice.get("text"))
            self._end_by(choice.get("finish_reason"))
        self._say(is_token)

    def _hear(self, said: Mapping[str, Any]) -> None:
        self.text += said["content"] if isinstance(said.get("content"), str) else ""
        self.has_thought = self.has_thought or bool(said.get("reasoning_content") or said.get("reasoning"))
        calls = said.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            arguments = _dict(_dict(call).get("function")).get("arguments")
            self.tool_arguments = (self.tool_arguments or "") + (arguments if isinstance(arguments, str) else "")

    def _take_items(self, items: object) -> None:
        """The items of a response, or the blocks of a message. A call of a tool may be all that there is."""
        for item in filter(None, map(_dict, items if isinstance(items, list) else ())):
            is_plain = _word(item.get("type")) in {"message", "reasoning", "text", "thinking"}
            words = _first(item, "content", "summary", "text", "thinking")
            self._is_said = self._is_said or _is_something(words) or not is_plain

    def _take_response(self, response: Mapping[str, Any]) -> None:
        """`/v1/responses`, as a whole."""
        self._take_usage(response.get("usage"))
        self._take_items(response.get("output"))
        status = _word(response.get("status"))
        if status in BAD_ENDS:
            self._fail(response.get("error"), response)
        else:
            self._has_ended = True
            self._is_said = self._is_said or status in GOES_ON
            self._is_at_limit = self._is_at_limit or status in AT_THE_LIMIT


_NO_WORDS = frozenset({"role", "type"})
"""Parts of a delta or a message that are not what is said."""


def _object_in(text: bytes) -> object:
    try:
        value = json.loads(text.decode(errors="replace"), strict=False)
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return _NO_JSON
    return _TOO_DEEP if _is_deeper(value, DEEPEST) else value


def _is_deeper(value: object, depth: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and (depth == 0 or any(_is_deeper(each, depth - 1) for each in inside))


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _first(found: Mapping[str, Any], *names: str) -> object:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _is_something(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(each is not None for each in (value.values() if isinstance(value, dict) else value))
    return value is not None and value is not False and value != ""


def _says_something(said: object) -> bool:
    if isinstance(said, dict):
        return any(_is_something(value) for name, value in said.items() if name not in _NO_WORDS)
    if isinstance(said, list):
        return any(map(_is_something, said))
    return _is_something(said)


def _status(value: object) -> int | None:
    try:
        status = int(value) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):  # words, or no finite number
        return None
    return status if status in ERRORS else None
