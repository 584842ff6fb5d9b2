"""Whether two releases of a model that embeds or ranks answer alike."""

from dataclasses import replace

import pytest

from blocks.ports.engine import Answer, Prompt
from flows.policy.gating.agreement import disagreement, were_compared

EMBED, RANK = Prompt("hello", 1, "vector"), Prompt("hello", 1, "ranking", ("a", "b", "c"))


def vector(*numbers: float) -> Answer:
    return Answer(200, vector=numbers, is_whole=True)


def scores(*numbers: float) -> Answer:
    return Answer(200, scores=numbers, is_whole=True)


@pytest.mark.parametrize("is_same_model", [True, False])
def test_vectors_of_another_length_are_of_no_use(is_same_model: bool) -> None:  # noqa: FBT001 - pytest's own way
    """Whichever model it is: the index has room for one length."""
    words = disagreement(EMBED, vector(0.6, 0.8), vector(0, 0.6, 0.8), is_same_model=is_same_model)
    assert words.startswith("its vectors have 2 numbers and stable's 3, and no index takes both: give it a service")


def test_the_same_model_says_the_same_vector() -> None:
    """Rounded it may be; turned, as by another pooling, or stretched, as without a normalisation, it may not."""
    stable = vector(0.6, 0.8, 0.0)
    assert disagreement(EMBED, vector(0.61, 0.79, 0.02), stable, is_same_model=True) == ""
    assert "a cosine of 0.960 to stable's" in disagreement(EMBED, vector(0.8, 0.6, 0), stable, is_same_model=True)
    assert "a cosine of -1.000" in disagreement(EMBED, vector(-0.6, -0.8, 0), stable, is_same_model=True)
    assert "is 10 times as long as stable's" in disagreement(EMBED, vector(6, 8, 0), stable, is_same_model=True)
    assert "is 0.5 times as long" in disagreement(EMBED, vector(0.3, 0.4, 0), stable, is_same_model=True)


def test_another_model_may_say_another_vector() -> None:
    """Which one is better nobody can tell by a gate."""
    assert disagreement(EMBED, vector(-0.6, -0.8), vector(0.6, 0.8), is_same_model=False) == ""


def test_large_numbers_have_a_direction_too() -> None:
    """Their product is no number any more, and the cosine is one."""
    assert disagreement(EMBED, vector(1e300, 1e300), vector(1e300, 1e300), is_same_model=True) == ""
    assert "cosine" in disagreement(EMBED, vector(1e300, 0), vector(0, 1e300), is_same_model=True)


def test_the_same_model_gives_the_same_scores() -> None:
    """A twentieth of how far they lie apart is excused; as a probability in place of a logit it is not."""
    stable = scores(4.0, -6.0, 0.0)
    assert disagreement(RANK, scores(4.3, -6.4, 0.1), stable, is_same_model=True) == ""
    words = disagreement(RANK, scores(0.98, 0.0025, 0.5), stable, is_same_model=True)
    assert words.startswith("for 'hello' its score of document 1 is 0.98 and stable's, of the same model, is 4:")
    assert disagreement(RANK, scores(0.98, 0.0025, 0.5), stable, is_same_model=False) == ""


@pytest.mark.parametrize("is_same_model", [True, False])
def test_what_nobody_can_use_is_said(is_same_model: bool) -> None:  # noqa: FBT001 - pytest's own way
    """Whichever model it is; that stable answers so is not the candidate's fault."""
    zeros = replace(vector(), unsound="a vector of 2 numbers is all zeros")
    told = disagreement(EMBED, zeros, vector(0.6, 0.8), is_same_model=is_same_model)
    assert told == "to 'hello' it answers what nobody can use: a vector of 2 numbers is all zeros"
    assert disagreement(EMBED, vector(0.6, 0.8), zeros, is_same_model=is_same_model) == ""


def test_no_answer_is_no_agreement() -> None:
    """Nor is it a disagreement: nothing was compared."""
    nothing, answer = Answer(None), vector(0.6, 0.8)
    assert disagreement(EMBED, nothing, answer, is_same_model=True) == ""
    assert not were_compared([(nothing, answer), (answer, nothing)])
    assert were_compared([(nothing, answer), (answer, answer)])
