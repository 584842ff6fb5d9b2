"""Do two releases of a model that embeds or ranks answer alike? What they answer is determined: no statistics needed.

Whoever calls them has compared with earlier answers for months: vectors lie in an index, and scores have thresholds.
"""

from collections.abc import Iterable
from math import hypot
from operator import mul

from blocks.ports.engine import Answer, Prompt

SAME_DIRECTION = 0.98
"""The cosine below which two vectors of one input are not those of the same model: in other numbers (bfloat16 against
float32) it is above 0.999, in 8 bits about 0.99. A rule of thumb, from no measurement of ours."""
SAME_LENGTH = 1.1
"""Times as long as the other: more is another normalisation, and each dot product changes with it."""
SAME_SCORE = 0.05
"""Of the distance between the best and the worst score of stable's ranking."""


def disagreement(prompt: Prompt, candidates: Answer, stables: Answer, *, is_same_model: bool) -> str:
    """Why nobody who used stable's answer can use the candidate's, in words; empty where that cannot be said.

    Two models are compared by the length of their vectors alone: which of them is the better one no gate can see.
    """
    if candidates.unsound:
        return f"to {_shown(prompt)} it answers what nobody can use: {candidates.unsound}"
    if candidates.vector and stables.vector:
        return _of_vectors(prompt, candidates.vector, stables.vector, is_same_model=is_same_model)
    if candidates.scores and stables.scores and is_same_model:
        return _of_rankings(prompt, candidates.scores, stables.scores)
    return ""


def were_compared(answers: Iterable[tuple[Answer, Answer]]) -> bool:
    """Whether both have answered any prompt."""
    return any(one.is_whole and other.is_whole for one, other in answers)


def _of_vectors(
    prompt: Prompt, candidates: tuple[float, ...], stables: tuple[float, ...], *, is_same_model: bool
) -> str:
    if len(candidates) != len(stables):
        return (
            f"its vectors have {len(candidates):,} numbers and stable's {len(stables):,}, and no index takes both: "
            f"give it a service of its own"
        )
    if not is_same_model:
        return ""
    if (cosine := _cosine(candidates, stables)) < SAME_DIRECTION:
        return (
            f"its vector of {_shown(prompt)} has a cosine of {cosine:.3f} to stable's, of the same model, where "
            f"{SAME_DIRECTION:g} is the least: see what changes the pooling, the prompt or the precision"
        )
    times = hypot(*candidates) / hypot(*stables)
    if not 1 / SAME_LENGTH <= times <= SAME_LENGTH:
        return (
            f"its vector of {_shown(prompt)} is {times:.3g} times as long as stable's, of the same model: see what "
            f"changes the normalisation"
        )
    return ""


def _of_rankings(prompt: Prompt, candidates: tuple[float, ...], stables: tuple[float, ...]) -> str:
    allowed = SAME_SCORE * (max(stables) - min(stables))
    for number, (mine, theirs) in enumerate(zip(candidates, stables, strict=True), 1):
        if abs(mine - theirs) > allowed:
            return (
                f"for {_shown(prompt)} its score of document {number} is {mine:.3g} and stable's, of the same model, "
                f"is {theirs:.3g}: see what changes the activation, the template or the precision"
            )
    return ""


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    # Each to its own length first: a product of large numbers would be no number any more.
    size, other_size = hypot(*one), hypot(*other)
    return sum(map(mul, (number / size for number in one), (number / other_size for number in other)))


def _shown(prompt: Prompt) -> str:
    """Golden prompts are the house's or the service's own, and no user's."""
    return repr(prompt.text[:40])
