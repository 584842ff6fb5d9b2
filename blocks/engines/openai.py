"""Any OpenAI-compatible engine asked directly: vLLM, llama.cpp and their like."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field

from blocks.engines.answers import AnswerReader, form_of
from blocks.engines.pooling import NoAnswer, check_they_differ, check_they_rank, scores_in, vectors_in
from blocks.engines.registry import engines
from blocks.errors import Refused, Unavailable, Unsound
from blocks.ports.engine import Answer, Expectation, Load, Prompt
from blocks.ports.fleet import ModelKind, Replica
from blocks.replica_tls import SERVER_NAME, context_trusting

TOOL = {
    "type": "function",
    "function": {
        "name": "answer",
        "description": "Hand over the answer to the question.",
        "parameters": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
        },
    },
}
EXPECTING: Mapping[Expectation, Mapping[str, object]] = {
    "text": {},
    "continuation": {},
    "json": {"response_format": {"type": "json_object"}},
    "tool": {"tools": [TOOL], "tool_choice": "required"},
}
"""What a request for words has besides its prompt, by what its answer has to be."""

MOST_BYTES = 8 * 1024 * 1024
"""Of an answer, or a page of metrics, no more is read: a replica on a rented machine says what it likes."""


@dataclass(frozen=True)
class OpenAIEngine:
    """Replicas reached over HTTP, by TLS where they speak it."""

    key_of: Callable[[str], str | None] = lambda _: None
    """The API key that a release's replicas ask for, as the fleet knows it; None where they ask for none."""
    replica_ca: str | None = None
    """PEM: the authority that vouches for the fleet's replicas; None where none of them speaks TLS."""
    probe_timeout_seconds: float = 5
    """For its health and its metrics; this and the next are for all of it, from the first byte to the last."""
    completion_timeout_seconds: float = 60

    def is_healthy(self, replica: Replica) -> bool:
        try:
            with self._asked(replica, "GET", "/health", self.probe_timeout_seconds) as response:
                return response.status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def complete(self, replica: Replica, kind: ModelKind = "chat") -> str:
        """A few tokens, two vectors or a ranking; Unavailable, with what came back, where there are none."""
        asked = READINESS[kind]
        try:
            with self._asked(
                replica, "POST", asked.path, self.completion_timeout_seconds, dict(asked.body)
            ) as response:
                content = _content(response)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{replica.name} at {replica.address} gave no {asked.answer} ({type(error).__name__}: {error}); "
                f"look at its log"
            ) from None
        try:
            if response.is_success:
                return asked.read(content)
            raise Unavailable(_not_given(replica, response.status_code, content, asked.answer))
        except ValueError:  # pydantic's ValidationError is one
            raise Unavailable(_not_given(replica, response.status_code, content, asked.answer)) from None
        except Unsound as error:
            raise Unsound(
                f"{replica.name} at {replica.address} answers, and its {asked.answer} is of no use: {error}; "
                f"see that the weights are whole and that this engine can serve them"
            ) from None

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        return (
            self._ask_to_pool(replica, prompt)
            if prompt.expects in {"vector", "ranking"}
            else self._ask_to_generate(replica, prompt)
        )

    def _ask_to_pool(self, replica: Replica, prompt: Prompt) -> Answer:
        """In one piece, for there is no first token; a vector in floats, where readiness asks for base64."""
        begun = time.monotonic()
        status, content, is_whole = None, b"", False
        path, body = (
            ("/v1/embeddings", {"input": [prompt.text], "encoding_format": "float"})
            if prompt.expects == "vector"
            else ("/v1/rerank", {"query": prompt.text, "documents": list(prompt.documents)})
        )
        try:
            with self._asked(replica, "POST", path, self.completion_timeout_seconds, body) as response:
                status = response.status_code
                content = _content(response)
                is_whole = response.is_success
        except httpx.HTTPError:
            pass  # the status says how far it came
        total_ms = _ms_since(begun)
        if not is_whole:
            return Answer(status=status, total_ms=total_ms)
        try:
            if prompt.expects == "vector":
                (vector,) = vectors_in(content, 1)
                return Answer(status=status, vector=vector, total_ms=total_ms, is_whole=True)
            scores = scores_in(content, len(prompt.documents))
            check_they_rank(scores)
            return Answer(status=status, scores=scores, total_ms=total_ms, is_whole=True)
        except Unsound as error:
            return Answer(status=status, total_ms=total_ms, is_whole=True, unsound=str(error))
        except NoAnswer:
            heard = AnswerReader("embedding" if prompt.expects == "vector" else "rerank", is_stream=False)
            heard.read(content)
            heard.verdict()
            return Answer(status=status, total_ms=total_ms, error_status=heard.error_status)

    def _ask_to_generate(self, replica: Replica, prompt: Prompt) -> Answer:
        begun = time.monotonic()
        kind, path, asked = (
            ("completion", "/v1/completions", {"prompt": prompt.text})
            if prompt.expects == "continuation"
            else ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt.text}]})
        )
        status, heard, first_ms, last_ms = None, AnswerReader(kind, is_stream=True), None, None
        form, size = "none", 0
        body = {
            **asked,
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
            "stream": True,
            **EXPECTING[prompt.expects],
        }
        try:
            with self._asked(replica, "POST", path, self.completion_timeout_seconds, body) as response:
                status = response.status_code
                form = form_of(response.headers.get("content-type", ""), response.headers.get("content-encoding", ""))
                heard.is_stream = form != "json"
                for piece in response.iter_raw() if form != "none" else ():
                    before = heard.tokens
                    heard.read(piece)
                    if heard.tokens > before:
                        last_ms = _ms_since(begun)
                        first_ms = last_ms if first_ms is None else first_ms
                    if (size := size + len(piece)) > MOST_BYTES:
                        break
        except httpx.HTTPError:
            pass  # what was heard so far says how far it came
        is_good = status is not None and httpx.codes.is_success(status)
        is_whole = heard.verdict() in {"no", "empty"} and is_good and form != "none" and size <= MOST_BYTES
        return Answer(
            status=status,
            text=heard.text,
            tool_arguments=heard.tool_arguments,
            has_thought=heard.has_thought,
            first_token_ms=first_ms,
            last_token_ms=last_ms,
            tokens=heard.tokens,
            total_ms=_ms_since(begun),
            is_whole=is_whole,
            error_status=heard.error_status if is_good else None,
        )

    def load(self, replica: Replica) -> Load | None:
        try:
            with self._asked(replica, "GET", "/metrics", self.probe_timeout_seconds) as response:
                return _load_on(_content(response.raise_for_status()).decode(errors="replace"))
        except (httpx.HTTPError, ValueError, OverflowError):  # the last two: no page of metrics
            return None

    @contextmanager
    def _asked(
        self, replica: Replica, method: str, path: str, timeout_seconds: float, body: object = None
    ) -> Iterator[httpx.Response]:
        """The answer once its head is here; ended by httpx.HTTPError where all of it takes longer than the timeout."""
        with (
            _Deadline(timeout_seconds) as deadline,
            _client(self._authority_of(replica)).stream(
                method,
                self._url(replica, path),
                json=body,
                # What is packed, however little of it comes, may be as much as fills all memory.
                headers={**self._headers(replica), "Accept-Encoding": "identity"},
                timeout=timeout_seconds,
                extensions={**_extensions(replica), "trace": deadline.trace},
            ) as response,
        ):
            yield response
            if deadline.is_over:
                raise httpx.ReadTimeout(f"not all of it came within {timeout_seconds:g} s")

    def _authority_of(self, replica: Replica) -> str | None:
        if replica.is_tls and self.replica_ca is None:
            raise Refused(
                f"{replica.name} at {replica.address} speaks TLS and its fleet names no authority that vouches for it; "
                f"give the fleet one"
            )
        return self.replica_ca if replica.is_tls else None

    def _url(self, replica: Replica, path: str) -> str:
        return f"{'https' if replica.is_tls else 'http'}://{replica.address}{path}"

    def _headers(self, replica: Replica) -> dict[str, str]:
        key = self.key_of(replica.release)
        return {} if key is None else {"Authorization": f"Bearer {key}"}


class _Deadline:
    """Ends a request as a whole.

    httpx's timeouts begin anew with each byte: a replica that sends one now and then, of its head or its body, would
    be waited for without end.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._connection: socket.socket | None = None
        self.is_over = False
        """Where an answer tells no length, its end by this looks like any other."""

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            # A handle of its own: TLS takes the other one over.
            self._connection = info["return_value"].get_extra_info("socket").dup()

    def _end(self) -> None:
        self.is_over = True
        if self._connection is not None:
            with suppress(OSError):  # it is over already
                self._connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._connection is not None:
            self._connection.close()


def _content(response: httpx.Response) -> bytes:
    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) > MOST_BYTES:
            raise httpx.ReadError(f"it sent more than {MOST_BYTES} bytes")
    return bytes(content)


def _load_on(page: str) -> Load | None:
    """What a page of metrics says; ValueError or OverflowError where it is none."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    # One sample for each model and each data-parallel rank.
    values: dict[str, list[float]] = {}
    for sample in samples:
        if isfinite(sample.value):
            values.setdefault(sample.name, []).append(sample.value)
    for names in (known.metrics for known in engines().values()):
        if names["running"] in values and names["waiting"] in values:
            found = {
                field: max(values[name]) if field == "kv_cache" else sum(values[name])
                for field, name in names.items()
                if name in values
            }
            return Load(int(found.pop("running")), int(found.pop("waiting")), **found)
    return None


def _extensions(replica: Replica) -> dict[str, str]:
    """By TLS an address proves nothing, as it may be another's tomorrow: the certificate has to say the name."""
    return {"sni_hostname": SERVER_NAME} if replica.is_tls else {}


def _ms_since(begun: float) -> float:
    return 1000 * (time.monotonic() - begun)


class _Message(BaseModel):
    content: str | None = None
    """Nothing, where a model that reasons has spent its tokens on that."""


class _Choice(BaseModel):
    message: _Message | None = None
    """In a chat."""
    text: str | None = None
    """In a completion."""


class _Usage(BaseModel):
    completion_tokens: int = Field(ge=1)


class _Completion(BaseModel):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage


def _said(content: bytes) -> str:
    choice = _Completion.model_validate_json(content).choices[0]
    return (choice.message.content if choice.message else choice.text) or ""


def _embedded(content: bytes) -> str:
    vectors = vectors_in(content, len(TEXTS))
    check_they_differ(vectors)
    return f"{len(vectors)} vectors of {len(vectors[0])} numbers"


def _ranked(content: bytes) -> str:
    scores = scores_in(content, len(TEXTS))
    check_they_rank(scores)
    return f"scores of {len(scores)} documents: {', '.join(f'{score:.3g}' for score in scores)}"


@dataclass(frozen=True)
class _Readiness:
    """What a replica is asked once, to see that it can do what its kind is for."""

    path: str
    body: Mapping[str, object]
    answer: str
    read: Callable[[bytes], str]
    """What was answered, in words or as it came; ValueError where that is no answer, Unsound where it is of no use."""


TEXTS = ("Paris is the capital of France.", "Bread is baked from flour, water and yeast.", "It will rain tomorrow.")
FEW: Mapping[str, object] = {"max_tokens": 8, "temperature": 0}
READINESS: Mapping[ModelKind, _Readiness] = {
    "chat": _Readiness(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Say hello."}], **FEW}, "completion", _said
    ),
    "completion": _Readiness("/v1/completions", {"prompt": "Once upon a time", **FEW}, "completion", _said),
    # As OpenAI's own client asks unless it is told otherwise.
    "embedding": _Readiness("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"}, "embedding", _embedded),
    "rerank": _Readiness(
        "/v1/rerank", {"query": "What is the capital of France?", "documents": TEXTS}, "ranking", _ranked
    ),
}


def _not_given(replica: Replica, status: int, content: bytes, answer: str) -> str:
    said = content[:200].decode(errors="replace")
    return f"{replica.name} at {replica.address} answered HTTP {status} and no {answer}: {said!r}; look at its log"


@cache
def _client(authority: str | None) -> httpx.Client:
    """One for each authority, as making one takes 20 ms; it uses no proxy and leaves no connection open."""
    return httpx.Client(
        verify=True if authority is None else context_trusting(authority),
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )
