"""Which shares of the traffic are still to come?"""

from collections.abc import Sequence


def stages_left(stages_percent: Sequence[int], standing_basis_points: int) -> tuple[int, ...]:
    """The stages from the share that stands on; that one is held again, for nobody knows how it went."""
    return tuple(share for share in stages_percent if share * 100 >= standing_basis_points)
