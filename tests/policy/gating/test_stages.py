"""Which stages are still to come."""

import pytest

from flows.policy.gating.stages import stages_left


@pytest.mark.parametrize(
    ("standing", "left"),
    [(0, (5, 15, 100)), (500, (5, 15, 100)), (600, (15, 100)), (1500, (15, 100)), (10_000, (100,))],
)
def test_promotion_goes_on_from_the_split_that_stands(standing: int, left: tuple[int, ...]) -> None:
    """The stage that stands is held again, for nobody knows how it went."""
    assert stages_left((5, 15, 100), standing) == left
