"""A market: what can be rented, where and at which price, and what of it is in stock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

ON_PROCESSORS = "CPU"
"""What stands for an accelerator's name where a replica is wanted on processors alone."""


def is_within(cell: str, name: str) -> bool:
    """Whether a cell is what is called so, or lies in it, as aws/us-east-1 lies in aws."""
    return cell == name or cell.startswith(name + "/")


def domain_of(cell: str) -> str:
    """What fails together with this cell: its region, Kubernetes cluster or Slurm cluster."""
    return "/".join(cell.split("/")[:2])


@dataclass(frozen=True)
class Offer:
    """One kind of machine that a cell rents out."""

    cell: str
    """As SkyPilot's `infra` has it: `aws/us-east-1`, `aws/us-east-1/us-east-1a`, `k8s/prod`, `slurm/alpha`."""
    accelerator: str
    """L4, A100-80GB; `ON_PROCESSORS` where the machine has none, or none is used."""
    accelerators: int
    """How many of them a replica gets; 0 on processors."""
    accelerator_gib: float
    """The memory of one of them."""
    host_gib: float | None
    """The machine's own memory; None where the cell does not say."""
    use_spot: bool
    dollars_per_hour: float | None
    """None where nobody has named a price: such an offer is shown and never taken."""
    instance: str | None = None
    """The cloud's own name for the machine; None where a cell has no such names."""
    disk_gib: float | None = None
    """What a replica may fill of its disk; None where it gets what it asks for, or nobody knows."""

    @property
    def domain(self) -> str:
        return domain_of(self.cell)

    def __str__(self) -> str:
        machine = f"{self.accelerator}:{self.accelerators}" if self.accelerators else (self.instance or "processors")
        return f"{machine} in {self.cell}{' (spot)' if self.use_spot else ''}"


@dataclass(frozen=True)
class Stock:
    """What a cell says of having an offer now."""

    answer: Literal["free", "none", "unknown", "refused"]
    """`refused`: we may not rent there at all, as without credentials."""
    at: float
    """Unix seconds at which it was said."""
    confidence: float
    """From 0, a guess, to 1, the cell's own count."""
    words: str
    """Who said what: `sinfo: 2 of 4 L4 are free`, `spot placement score 7 of 10`, `the key is refused: …`."""
    replicas: int | None = None
    """How many replicas would fit now; None where the cell does not say."""
    load: float | None = None
    """The share of this kind that is in use, from 0 to 1; None where the cell does not say."""


class Market(Protocol):
    """What can be rented, and what of it is in stock. Nothing here costs anything or needs an account."""

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        """Everything on offer in those cells with those accelerators; an empty list of either allows every one.

        Machines without accelerators are asked for by name, `ON_PROCESSORS`, where there are others: next to them they
        look cheap.

        A cell may be named in part: `aws`, `aws/us-east-1`, `slurm`. Refused where a name is nobody's, saying which
        there are.
        """
        ...

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        """One answer an offer, in their order; what cannot be asked is `unknown`, never an error."""
        ...
