"""What a release is judged by, by the kind of its model."""

from dataclasses import replace

import pytest

from blocks.errors import Refused
from blocks.ports.engine import Answer, Prompt
from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import Outcome, RequestKind
from flows.policy.gating.kinds import concerns, limits_for
from flows.policy.gating.probes import what_is_wrong
from tests.limits import LIMITS

ONE = Outcome(
    id="1",
    at=0,
    slot="green",
    address="127.0.0.1:1",
    status=200,
    first_token_ms=None,
    tokens=None,
    per_token_ms=None,
    total_ms=10,
    user=None,
    retried=False,
    by_fallback=False,
    cut_short=False,
    is_empty=False,
    user_left=False,
)


@pytest.mark.parametrize(
    ("kind", "asked", "does"),
    [
        ("embedding", "embedding", True),
        ("embedding", "chat", False),
        ("embedding", "rerank", False),
        ("rerank", "rerank", True),
        ("rerank", "score", True),
        ("rerank", "embedding", False),
        ("chat", "chat", True),
        ("chat", "embedding", True),
        ("completion", "chat", True),
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_a_release_is_judged_by_what_it_had_to_answer(
    kind: ModelKind,
    asked: RequestKind,
    does: bool,  # noqa: FBT001 - pytest's own way
    status: int,
) -> None:
    """Whatever came of it; of a model that generates, the judge finds out what it can do."""
    assert concerns(kind, replace(ONE, kind=asked, status=status)) == does


@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_without_tokens_no_token_has_a_limit(kind: ModelKind) -> None:
    """The service's are left out, and one that the release itself is given is refused."""
    limits = limits_for(kind, LIMITS.model_copy(update={"token_p95_ms": 100}), {"error_percent"})
    assert (limits.first_token_p95_ms, limits.token_p95_ms) == (None, None)
    assert limits.error_percent == LIMITS.error_percent
    with pytest.raises(Refused, match=f"limits has token_p95_ms, and a model of kind '{kind}' has no tokens"):
        limits_for(kind, LIMITS, {"token_p95_ms", "error_percent"})


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_what_generates_keeps_its_limits(kind: ModelKind) -> None:
    """All of them."""
    assert limits_for(kind, LIMITS, {"token_p95_ms"}) is LIMITS


def test_a_probes_vector_or_ranking_is_wrong_where_nobody_can_use_it() -> None:
    """The engine has said so; that there are no words is right."""
    for prompt in (Prompt("hello", 1, "vector"), Prompt("hello", 1, "ranking", ("a", "b"))):
        assert what_is_wrong(prompt, Answer(200, is_whole=True, unsound="all zeros")) == "all zeros"
        assert what_is_wrong(prompt, Answer(200, is_whole=True, vector=(1.0,))) == ""


def test_a_text_that_goes_on_is_no_empty_one() -> None:
    """As in a chat."""
    prompt = Prompt("The capital of France is", 8, "continuation")
    assert what_is_wrong(prompt, Answer(200, " Paris.")) == ""
    assert what_is_wrong(prompt, Answer(200, " ")) == "it is empty"
