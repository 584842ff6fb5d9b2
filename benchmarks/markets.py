"""Synthetic markets: offers, and when each was in stock; seeded, with shapes from published studies.

Where each shape comes from:

- *How often a zone has spot GPUs, and for how long*: the traces published with "Can't Be Late" (Wu et al., NSDI '24,
  github.com/skypilot-org/spot-traces): one V100 in nine zones of AWS, asked every 195 s for 45 days. The shares of
  time in stock are `SHARES_IN_STOCK`. Periods out of stock have a mean of 103 minutes and a median of 30, so they come
  in bursts: log-normal with sigma 1.3, which makes a zone's stay as long as it is there.
- *Zones of a region run out together*: those traces correlate by 0.43 within a region and by 0.14 between regions;
  SkyServe (Mao et al., EuroSys '25) builds on the same.
- *Big machines are scarcer*: eight V100 in the zones where one is there for 79 and 72 % of the time: 48 and 47 %.
- *All or nothing*: asked for sixteen machines at once, a zone that had any had all sixteen for 73 to 95 % of the time.
- *Scores are right more often than not*: SpotLake (Lee et al., IISWC '22) puts AWS's spot placement score first among
  the signs of availability, and shows that it errs; that it is right for 80 % of the time is ours.
- *Prices*: spot prices barely change and say little of availability (SpotLake), so they are drawn by region and stay;
  two worlds let them follow availability, one in each direction. On-demand prices of a cloud are equal everywhere.
- *On demand, and own clusters*: no traces are published; the shares and the longer periods are ours.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from random import Random

from blocks.ports.market import Offer, Stock

STEP = 300.0
"""Seconds; what is in stock changes at these steps."""
MINUTE = 60.0
SHARES_IN_STOCK = (
    ("us-east-1", (0.17, 0.47, 0.45, 0.59)),
    ("us-east-2", (0.76, 0.68)),
    ("us-west-2", (0.88, 0.90, 0.89)),
)
OUT_OF_STOCK_MINUTES = 100.0
SIGMA = 1.3
REGION_PART = 0.45
"""How much of a zone's lack of stock is its whole region's: with this exponent two zones correlate by about 0.4."""
WHOLE_STOCK = 16
WHOLE_STOCK_SHARE = 0.85
SCORE_IS_RIGHT = 0.8
SCORE_CONFIDENCE = 0.5
SCORE_STEPS = 6
"""A score stands for half an hour."""


@dataclass(frozen=True)
class Lot:
    """An offer, what of it is in stock at each step, and what its cell says of that."""

    offer: Offer
    in_stock: Sequence[int]
    ends: Sequence[int]
    """For each step, the first later step at which nothing is in stock."""
    said: Callable[[int], Stock]
    """What the cell says at a step."""
    answer_seconds: float
    start_seconds: float
    catalogue_price: float
    """What SkyPilot takes it to cost: nothing, for own clusters."""

    def free_at(self, now: float) -> int:
        return self.in_stock[int(now // STEP)]

    def taken_away_at(self, now: float) -> float:
        """When a spot machine that is got now is lost."""
        return self.ends[int(now // STEP)] * STEP if self.offer.use_spot else float("inf")


@dataclass(frozen=True)
class World:
    name: str
    lots: tuple[Lot, ...]
    outside: float
    """Dollars an hour for what serves users in place of a replica that is missing."""


def worlds(seed: int, days: float) -> tuple[World, ...]:
    """All that the benchmark plays; each has its own randomness, so that one more changes no other."""
    makers: tuple[tuple[str, float, Callable[[_Maker], list[Lot]]], ...] = (
        ("spot, one GPU", 2.0, lambda maker: maker.spot("L4", 1, 0.7)),
        ("spot, eight GPUs", 36.0, lambda maker: maker.spot("A100-80GB", 8, 12.0, scarcity=0.6)),
        ("spot, the cheap scarce", 2.0, lambda maker: maker.spot("L4", 1, 0.7, follows=1)),
        ("spot, the cheap plentiful", 2.0, lambda maker: maker.spot("L4", 1, 0.7, follows=-1)),
        ("on demand, one price a cloud", 6.0, lambda maker: maker.on_demand("H100", 1, 4.0)),
        ("spot beside on demand", 3.0, lambda m: [*m.spot("L40S", 1, 0.7, scarcity=0.8), *m.on_demand("L40S", 1, 1.9)]),
        (
            "own clusters, clouds behind",
            5.5,
            lambda m: [*m.own("A100-80GB", 1, 1.5), *m.on_demand("A100-80GB", 1, 3.7)],
        ),
    )
    return tuple(World(name, tuple(make(_Maker(Random(f"{seed} {name}"), days))), out) for name, out, make in makers)


@dataclass(frozen=True)
class _Maker:
    random: Random
    days: float

    def spot(self, accelerator: str, count: int, price: float, *, scarcity: float = 1.0, follows: int = 0) -> list[Lot]:
        """Two clouds with the study's zones; `follows` 1 makes those that have most the dearest, -1 the cheapest."""
        lots: list[Lot] = []
        for cloud, signal in (("aws", "score"), ("gcp", None)):
            for region, shares in SHARES_IN_STOCK:
                dearer = self.random.uniform(0.7, 1.4)
                region_stock = self._region(shares, scarcity)
                for zone, measured in zip("abcd", shares, strict=False):
                    share = measured * scarcity
                    factor = (
                        1.0 + 0.8 * follows * (measured - 0.6) if follows else dearer * self.random.uniform(0.95, 1.05)
                    )
                    cell = f"{cloud}/{region}/{region}{zone}"
                    offer = Offer(cell, accelerator, count, 80, None, use_spot=True, dollars_per_hour=price * factor)
                    own = self._stock(share ** (1 - REGION_PART), OUT_OF_STOCK_MINUTES)
                    lots.append(self._lot(offer, [a * b for a, b in zip(region_stock, own, strict=True)], signal))
        return lots

    def on_demand(self, accelerator: str, count: int, price: float) -> list[Lot]:
        """Three clouds, one price each; stock-outs are rarer and last for hours."""
        lots: list[Lot] = []
        for cloud, dearer in (("gcp", 1.0), ("aws", 1.1), ("azure", 1.15)):
            for number in range(6):
                offer = Offer(
                    f"{cloud}/region-{number}", accelerator, count, 80, None, use_spot=False,
                    dollars_per_hour=price * dearer,
                )  # fmt: skip
                stock = self._stock(self.random.uniform(0.3, 0.95), 600)
                lots.append(self._lot(offer, stock, None))
        return lots

    def own(self, accelerator: str, count: int, price: float) -> list[Lot]:
        """Two Slurm clusters and one Kubernetes cluster that count what is free; few machines, busy for hours."""
        lots: list[Lot] = []
        for cell, share in (("slurm/alpha", 0.3), ("slurm/beta", 0.5), ("k8s/prod", 0.5)):
            offer = Offer(cell, accelerator, count, 80, None, use_spot=False, dollars_per_hour=price)
            stock = [min(free, 4) for free in self._stock(share, 300)]
            lots.append(self._lot(offer, stock, "count", catalogue_price=0.0))
        return lots

    def _region(self, shares: Sequence[float], scarcity: float) -> list[int]:
        mean = scarcity * sum(shares) / len(shares)
        return [int(free > 0) for free in self._stock(mean**REGION_PART, OUT_OF_STOCK_MINUTES)]

    def _stock(self, share: float, out_minutes: float) -> list[int]:
        """In and out of stock by turns, with heavy tails; when in stock, mostly as much as anybody wants."""
        in_minutes = out_minutes * share / (1 - share)
        series: list[int] = []
        is_in = self.random.random() < share
        while len(series) < self.days * 86400 / STEP:
            mean = (in_minutes if is_in else out_minutes) * MINUTE / STEP
            steps = max(1, round(self.random.lognormvariate(log(mean) - SIGMA**2 / 2, SIGMA)))
            whole = self.random.random() < WHOLE_STOCK_SHARE
            series += [(WHOLE_STOCK if whole else self.random.randint(1, 4)) if is_in else 0] * steps
            is_in = not is_in
        return series[: int(self.days * 86400 / STEP)]

    def _lot(
        self, offer: Offer, in_stock: Sequence[int], signal: str | None, catalogue_price: float | None = None
    ) -> Lot:
        empty = [step for step, free in enumerate(in_stock) if not free]
        ends = [
            empty[at] if (at := bisect_right(empty, step)) < len(empty) else len(in_stock)
            for step in range(len(in_stock))
        ]
        is_right = [self.random.random() < SCORE_IS_RIGHT for _ in range(len(in_stock) // SCORE_STEPS + 1)]

        def said(step: int) -> Stock:
            free, at = in_stock[step], step * STEP
            if signal == "count":
                return Stock("free" if free else "none", at, 1.0, f"{free} are free", replicas=free)
            if signal == "score":
                seems_free = (free > 0) == is_right[step // SCORE_STEPS]
                return Stock("free" if seems_free else "none", at, SCORE_CONFIDENCE, "a placement score")
            return Stock("unknown", at, 0.0, "the cloud does not say")

        price = offer.dollars_per_hour or 0.0
        return Lot(
            offer=offer,
            in_stock=in_stock,
            ends=ends,
            said=said,
            answer_seconds=self.random.uniform(45, 150),
            start_seconds=self.random.uniform(300, 900),
            catalogue_price=price if catalogue_price is None else catalogue_price,
        )
