"""Do several cells say the same because of us?"""

import pytest

from blocks.errors import NoCapacity, Unexplained
from flows.policy.placement.causes import is_one_cause


def noes(*cells_and_words: tuple[str, str]) -> list[NoCapacity]:
    return [Unexplained(cell, words) for cell, words in cells_and_words]


@pytest.mark.parametrize(
    "said",
    [
        noes(("aws/us-east-1", "bad flag"), ("gcp/us-west1", "bad flag"), ("slurm/alpha", "bad flag")),
        # Its own names and numbers tell a cell from another, and no cause.
        noes(
            ("aws/us-east-1", "no such AMI in us-east-1a (request 4f1c-77)"),
            ("aws/eu-west-3", "no such AMI in eu-west-3c (request 0a9e-12)"),
            ("aws/us-west-2/us-west-2b", "no such AMI in us-west-2b (request 11)"),
        ),
        noes(("slurm/z", "odd"), ("slurm/a", "bad a"), ("slurm/b", "bad b"), ("slurm/c", "bad c")),
    ],
)
def test_three_in_a_row_in_the_same_words_are_one_cause(said: list[NoCapacity]) -> None:
    """Whatever else was said before."""
    assert is_one_cause(said)


@pytest.mark.parametrize(
    "said",
    [
        [],
        noes(("a", "bad"), ("b", "bad")),
        noes(("a", "bad"), ("a", "bad"), ("a", "bad"), ("b", "bad")),
        noes(("a", "bad"), ("b", "odd"), ("c", "bad"), ("d", "bad")),
        noes(("a", "bad"), ("b", "bad"), ("c", "bad"), ("d", "worse")),
    ],
)
def test_fewer_cells_or_other_words_are_not(said: list[NoCapacity]) -> None:
    """Replicas that are refused side by side in one cell are one cell."""
    assert not is_one_cause(said)
