"""Any OpenAI-compatible engine asked directly: vLLM, llama.cpp and their like."""

from dataclasses import dataclass
from functools import cache

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field, ValidationError

from blocks.errors import Unavailable

IN_FLIGHT_GAUGES = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
)
"""What each engine calls the requests that it answers and those that wait."""


@dataclass(frozen=True)
class OpenAIEngine:
    """An engine at `host:port`, reached over plain HTTP."""

    probe_timeout_seconds: float = 5
    """For its health and its metrics."""
    completion_timeout_seconds: float = 60

    def is_healthy(self, address: str) -> bool:
        try:
            return (
                _client().get(f"http://{address}/health", timeout=self.probe_timeout_seconds).status_code
                == httpx.codes.OK
            )
        except httpx.HTTPError:
            return False

    def complete(self, address: str) -> str:
        """A few tokens; Unavailable, with what came back, where there is not one."""
        try:
            response = _client().post(
                f"http://{address}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0},
                timeout=self.completion_timeout_seconds,
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the replica at {address} gave no completion ({type(error).__name__}: {error}); look at its log"
            ) from error
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(_no_completion(address, response)) from error
        if not response.is_success or completion.usage.completion_tokens == 0:
            raise Unavailable(_no_completion(address, response))
        return completion.choices[0].message.content or ""

    def in_flight(self, address: str) -> int | None:
        try:
            page = (
                _client().get(f"http://{address}/metrics", timeout=self.probe_timeout_seconds).raise_for_status().text
            )
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        except (httpx.HTTPError, ValueError):  # ValueError: no page of metrics
            return None
        for gauges in IN_FLIGHT_GAUGES:
            # One sample for each model and each data-parallel rank.
            values = [[sample.value for sample in samples if sample.name == gauge] for gauge in gauges]
            if all(values):
                return int(sum(map(sum, values)))
        return None


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


def _no_completion(address: str, response: httpx.Response) -> str:
    return (
        f"the replica at {address} answered HTTP {response.status_code} and no completion: {response.text[:200]!r}; "
        f"look at its log"
    )


@cache
def _client() -> httpx.Client:
    """One for the whole process, as making one takes 20 ms; it uses no proxy and leaves no connection open."""
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
