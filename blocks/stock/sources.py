"""Every cloud that says what it has."""

from collections.abc import Sequence

from blocks.errors import Unavailable
from blocks.ports.market import Offer
from blocks.stock.aws import SpotPlacementScores
from blocks.stock.google import CapacityAdvice
from blocks.stock.source import Answers, StockSource


class AzureWhereInstalled:
    """Azure's scores; its library comes with `skyferry[azure]`."""

    cloud = "azure"

    def knows(self, offer: Offer) -> bool:
        return offer.use_spot

    def ask(self, offers: Sequence[Offer]) -> Answers:
        try:
            from blocks.stock import azure  # noqa: PLC0415 - it needs what need not be there
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("azure"):
                raise
            raise Unavailable("there is no library to ask Azure with; install skyferry[azure]") from None
        return azure.SpotPlacementScores().ask(offers)


SOURCES: tuple[StockSource, ...] = (
    AzureWhereInstalled(),
    CapacityAdvice(),
    SpotPlacementScores(),
)
"""Of two that know of an offer the first is asked; none before a market wants to know."""
