"""What a service's probes ask, by the kind of its model."""

import pytest
from pydantic import ValidationError

from blocks.ports.engine import EXPECTATIONS
from blocks.ports.fleet import ModelKind
from blocks.service import GoldenPrompt, Service

KINDS: tuple[ModelKind, ...] = ("chat", "completion", "embedding", "rerank")


def service(*golden: GoldenPrompt) -> Service:
    return Service.model_construct(name="search", golden_prompts=list(golden))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_prompts_of_the_house(kind: ModelKind) -> None:
    """Two or more, and nothing in them that the kind cannot answer; a ranking has documents."""
    prompts = service().prompts_for(kind)
    assert len(prompts) >= 2
    assert {prompt.expects for prompt in prompts} <= EXPECTATIONS[kind]
    assert all(bool(prompt.documents) == (kind == "rerank") for prompt in prompts)


def test_a_services_own_prompts_come_in_place_of_those_of_the_house() -> None:
    """Of their kind; a service that was saved by version 0.1 has such for chats alone."""
    own = GoldenPrompt(prompt="my own", expects="vector")
    assert [prompt.text for prompt in service(own).prompts_for("embedding")] == ["my own"]
    assert "my own" not in [prompt.text for prompt in service(own).prompts_for("rerank")]
    field = Service.model_fields["golden_prompts"].get_default(call_default_factory=True)
    assert {prompt.expects for prompt in field} == EXPECTATIONS["chat"]


def test_a_ranking_needs_documents_and_nothing_else_has_any() -> None:
    """Said where it is filled in, and not by a probe that fails."""
    GoldenPrompt(prompt="q", expects="ranking", documents=["a", "b"])
    with pytest.raises(ValidationError, match="a ranking needs two documents or more, and 1 are given; add some"):
        GoldenPrompt(prompt="q", expects="ranking", documents=["a"])
    with pytest.raises(ValidationError, match="documents are given and a vector is expected"):
        GoldenPrompt(prompt="q", expects="vector", documents=["a", "b"])
