"""Any OpenAI-compatible engine asked directly: vLLM, llama.cpp and their like."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field, ValidationError

from blocks.answers import AnswerReader
from blocks.errors import Refused, Unavailable
from blocks.ports import Answer, Load, Prompt, Replica
from blocks.replica_tls import SERVER_NAME, context_trusting

NAMES: tuple[Mapping[str, str], ...] = (
    {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generated_tokens": "vllm:generation_tokens_total",
        "timed_tokens": "vllm:inter_token_latency_seconds_count",
        "token_seconds": "vllm:inter_token_latency_seconds_sum",
        "queued_requests": "vllm:request_queue_time_seconds_count",
        "queue_seconds": "vllm:request_queue_time_seconds_sum",
        "preemptions": "vllm:num_preemptions_total",
        "kv_cache": "vllm:kv_cache_usage_perc",
    },
    {
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generated_tokens": "llamacpp:tokens_predicted_total",
        "timed_tokens": "llamacpp:tokens_predicted_total",
        "token_seconds": "llamacpp:tokens_predicted_seconds_total",
    },
)
"""What each engine calls the fields of `Load`."""


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
EXPECTING: Mapping[str, Mapping[str, object]] = {
    "text": {},
    "json": {"response_format": {"type": "json_object"}},
    "tool": {"tools": [TOOL], "tool_choice": "required"},
}
"""What a request has besides its prompt, by what its answer has to be."""


@dataclass(frozen=True)
class OpenAIEngine:
    """Replicas reached over HTTP, by TLS where they speak it."""

    key_of: Callable[[str], str | None] = lambda _: None
    """The API key that a release's replicas ask for, as the fleet knows it; None where they ask for none."""
    replica_ca: str | None = None
    """PEM: the authority that vouches for the fleet's replicas; None where none of them speaks TLS."""
    probe_timeout_seconds: float = 5
    """For its health and its metrics."""
    completion_timeout_seconds: float = 60

    def is_healthy(self, replica: Replica) -> bool:
        try:
            return self._ask(replica, "GET", "/health", self.probe_timeout_seconds).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def complete(self, replica: Replica) -> str:
        """A few tokens; Unavailable, with what came back, where there is not one."""
        try:
            response = self._ask(
                replica,
                "POST",
                "/v1/chat/completions",
                self.completion_timeout_seconds,
                {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0},
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{replica.name} at {replica.address} gave no completion ({type(error).__name__}: {error}); "
                f"look at its log"
            ) from error
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(_no_completion(replica, response)) from error
        if not response.is_success or completion.usage.completion_tokens == 0:
            raise Unavailable(_no_completion(replica, response))
        return completion.choices[0].message.content or ""

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        begun = time.monotonic()
        status, heard, first_ms, last_ms = None, AnswerReader("chat", is_stream=True), None, None
        body = {
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
            "stream": True,
            **EXPECTING[prompt.expects],
        }
        try:
            with _client(self._authority_of(replica)).stream(
                "POST",
                self._url(replica, "/v1/chat/completions"),
                json=body,
                headers=self._headers(replica),
                timeout=self.completion_timeout_seconds,
                extensions=_extensions(replica),
            ) as response:
                status = response.status_code
                heard.is_stream = not response.headers.get("content-type", "").startswith("application/json")
                for piece in response.iter_bytes():
                    before = heard.tokens
                    heard.read(piece)
                    if heard.tokens > before:
                        last_ms = _ms_since(begun)
                        first_ms = last_ms if first_ms is None else first_ms
                    # As a whole: a replica that sends a byte now and then would be waited for without end.
                    if _ms_since(begun) > 1000 * self.completion_timeout_seconds:
                        break
        except httpx.HTTPError:
            pass  # what was heard so far says how far it came
        is_good = status is not None and httpx.codes.is_success(status)
        is_whole = heard.verdict() in {"no", "empty"} and is_good
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
            page = self._ask(replica, "GET", "/metrics", self.probe_timeout_seconds).raise_for_status().text
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        except (httpx.HTTPError, ValueError):  # ValueError: no page of metrics
            return None
        # One sample for each model and each data-parallel rank.
        values: dict[str, list[float]] = {}
        for sample in samples:
            if isfinite(sample.value):
                values.setdefault(sample.name, []).append(sample.value)
        for names in NAMES:
            if names["running"] in values and names["waiting"] in values:
                found = {
                    field: max(values[name]) if field == "kv_cache" else sum(values[name])
                    for field, name in names.items()
                    if name in values
                }
                return Load(int(found.pop("running")), int(found.pop("waiting")), **found)
        return None

    def _ask(
        self, replica: Replica, method: str, path: str, timeout_seconds: float, body: object = None
    ) -> httpx.Response:
        return _client(self._authority_of(replica)).request(
            method,
            self._url(replica, path),
            json=body,
            headers=self._headers(replica),
            timeout=timeout_seconds,
            extensions=_extensions(replica),
        )

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


def _extensions(replica: Replica) -> dict[str, str]:
    """By TLS an address proves nothing, as it may be another's tomorrow: the certificate has to say the name."""
    return {"sni_hostname": SERVER_NAME} if replica.is_tls else {}


def _ms_since(begun: float) -> float:
    return 1000 * (time.monotonic() - begun)


class _Message(BaseModel):
    content: str | None = None
    """Nothing, where a model that reasons has spent its tokens on that."""


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    completion_tokens: int


class _Completion(BaseModel):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage


def _no_completion(replica: Replica, response: httpx.Response) -> str:
    return (
        f"{replica.name} at {replica.address} answered HTTP {response.status_code} and no completion: "
        f"{response.text[:200]!r}; look at its log"
    )


@cache
def _client(authority: str | None) -> httpx.Client:
    """One for each authority, as making one takes 20 ms; it uses no proxy and leaves no connection open."""
    return httpx.Client(
        verify=True if authority is None else context_trusting(authority),
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )
