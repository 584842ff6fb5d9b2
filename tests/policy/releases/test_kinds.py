"""A service keeps its kind of model, for its users go on asking what they asked."""

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, ModelKind
from flows.policy.releases.kinds import check_kind
from tests.policy.releases.test_scale import release as released

LIVE = released("live", "live")


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ("chat", "chat"),
        ("chat", "completion"),
        ("completion", "chat"),
        ("embedding", "embedding"),
        ("rerank", "rerank"),
    ],
)
def test_a_model_that_is_asked_alike_takes_over(live: ModelKind, wanted: ModelKind) -> None:
    """Words from words, vectors from vectors."""
    check_kind("chat", LIVE.model_copy(update={"engine": EngineSettings(1024, 2, live)}), wanted)


@pytest.mark.parametrize(("live", "wanted"), [("chat", "embedding"), ("embedding", "rerank"), ("rerank", "chat")])
def test_a_model_of_another_kind_gets_a_service_of_its_own(live: ModelKind, wanted: ModelKind) -> None:
    """Before anything is mirrored or started."""
    release = LIVE.model_copy(update={"engine": EngineSettings(1024, 2, live)})
    with pytest.raises(
        Refused, match=rf"{LIVE.id} live, of kind '{live}', whose users a model of kind '{wanted}' cannot"
    ):
        check_kind("chat", release, wanted)


def test_the_first_release_may_be_of_any_kind() -> None:
    """Nobody is answered yet."""
    check_kind("search", None, "rerank")
