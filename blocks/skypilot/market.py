"""The market of whatever SkyPilot can rent in: public clouds, Slurm clusters, Kubernetes clusters."""

import queue
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, TypeVar

from blocks.errors import NoCapacity, Refused, SkyferryError, Unavailable
from blocks.ports.market import ON_PROCESSORS, Offer, Stock, is_within
from blocks.skypilot import catalog
from blocks.skypilot.catalog import closest
from blocks.skypilot.infra import KINDS, Infra, Node, Place, Rate, SkyPilotInfra
from blocks.stock.source import Answers, StockSource
from blocks.stock.sources import SOURCES

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SkyPilotMarket:
    """Offers from SkyPilot's catalogue and the clusters' own accounts of themselves; stock from whoever can say."""

    rates: Sequence[Rate] = ()
    """What Slurm and Kubernetes clusters cost. They go before SkyPilot's own settings for prices, which count too."""
    infra: Infra = field(default_factory=SkyPilotInfra)
    sources: Sequence[StockSource] = SOURCES
    seconds: float = 90
    """How long each source may take: one or two seconds as a rule, but the first question starts SkyPilot's server."""
    now: Callable[[], float] = time.time

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        """As the port says; no cells means every cloud that SkyPilot has enabled, and every cluster it has set up.

        A cluster that does not answer has one offer for each accelerator asked, without memory and price: it is shown,
        never taken, and its stock says what is the matter.
        """
        places = self._places(cells)
        asked = frozenset(name.lower() for name in accelerators)
        by_cloud: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            by_cloud[place.cloud].append(place)
        counted = [place for kind in KINDS for place in by_cloud.pop(kind, [])]
        found = [offer for found in by_cloud.values() for offer in catalog.list_offers(found, asked)]
        nodes = self._nodes_in(counted)
        names = {offer.accelerator for offer in found}
        for place in counted:
            having = nodes[place]
            if isinstance(having, SkyferryError):
                found += _unanswered(place, accelerators)
                continue
            names |= {node.accelerator for node in having if node.accelerator}
            card = RateCard((*self.rates, *self.infra.rates(place)))
            found += node_offers(place, having, card, accelerators)
        _refuse_unknown(accelerators, names)
        return tuple(sorted(set(found), key=_order))

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        """As the port says; the sources are asked side by side."""
        places = {offer.cell: Place.parse(offer.cell) for offer in offers}
        clusters = {(place.cloud, place.region) for place in places.values() if place.cloud in KINDS}
        clouds = {place.cloud for place in places.values()} - set(KINDS)
        questions: dict[Any, Callable[[], Any]] = {
            **{cluster: _bound(self.infra.nodes, *cluster) for cluster in clusters},
            **{cloud: _bound(self.infra.refusal, cloud) for cloud in clouds},
        }
        answers = _ask(questions, self.seconds)
        open_ones = [offer for offer in offers if answers.get(places[offer.cell].cloud) is None]
        answers |= _ask(self._sources_to_ask(open_ones, places), self.seconds)
        return tuple(self._stock_of(offer, places[offer.cell], answers) for offer in offers)

    def _places(self, cells: Sequence[str]) -> tuple[Place, ...]:
        known = {*catalog.clouds(), *KINDS}
        named = [Place.parse(cell) for cell in cells]
        for place in named:
            if place.cloud not in known:
                raise Refused(f"SkyPilot has no cloud called {place.cloud}; {closest(place.cloud, known)}")
        if not cells:
            named = [place for place in self.infra.enabled() if place.cloud in known]
        if not named:
            raise Refused(
                "SkyPilot has no cloud enabled and no cluster set up; run `sky check`, "
                "or name cells such as aws or gcp to plan by their list prices"
            )
        return tuple(sorted(set(self._clusters_in(named)), key=str))

    def _clusters_in(self, named: Sequence[Place]) -> Iterator[Place]:
        """A cluster that is named must be set up; a kind without a name stands for all of that kind."""
        for place in named:
            if place.cloud not in KINDS:
                yield place
                continue
            known = self.infra.clusters(place.cloud)
            if place.region is not None and place.region not in known:
                what, file = (
                    ("Slurm cluster", "~/.slurm/config") if place.cloud == "slurm" else ("context", "kubeconfig")
                )
                there = closest(place.region, known) if known else "there is none"
                raise Refused(f"SkyPilot knows no {what} called {place.region}; {there}; add it to {file}")
            if place.region is None and not known:
                raise Refused(f"SkyPilot knows no cluster of {place.cloud}; run `sky check`")
            yield from [place] if place.region else [Place(place.cloud, name) for name in known]

    def _nodes_in(self, places: Sequence[Place]) -> dict[Place, Sequence[Node] | SkyferryError]:
        clusters = {(place.cloud, place.region) for place in places}
        answers = _ask({cluster: _bound(self.infra.nodes, *cluster) for cluster in clusters}, self.seconds)
        found: dict[Place, Sequence[Node] | SkyferryError] = {}
        for place in places:
            answer = answers[place.cloud, place.region]
            found[place] = answer if isinstance(answer, SkyferryError) else _of_partition(answer, place)
        return found

    def _sources_to_ask(self, offers: Sequence[Offer], places: Mapping[str, Place]) -> dict[Any, Callable[[], Any]]:
        """One question for each source, about all of its machines that it knows of."""
        asked: dict[tuple[str, str], list[Offer]] = defaultdict(list)
        for offer in offers:
            if (source := self._source_of(offer, places[offer.cell])) is not None:
                asked[source].append(offer)
        known = {_source(number, source): source for number, source in enumerate(self.sources)}
        return {key: _bound(known[key].ask, of_it) for key, of_it in asked.items()}

    def _source_of(self, offer: Offer, place: Place) -> tuple[str, str] | None:
        """The first source that knows of it, by the key of its answers."""
        for number, source in enumerate(self.sources):
            if offer.instance and source.cloud == place.cloud and source.knows(offer):
                return _source(number, source)
        return None

    def _stock_of(self, offer: Offer, place: Place, answers: Mapping[Any, Any]) -> Stock:
        try:
            return self._told_of(offer, place, answers)
        except Refused as error:
            return Stock("refused", self.now(), 1.0, str(error))
        except NoCapacity as error:
            return Stock("none", self.now(), 1.0, str(error))
        except SkyferryError as error:
            return Stock("unknown", self.now(), 0.0, str(error))

    def _told_of(self, offer: Offer, place: Place, answers: Mapping[Any, Any]) -> Stock:
        answer = answers[(place.cloud, place.region) if place.cloud in KINDS else place.cloud]
        if isinstance(answer, SkyferryError):
            raise answer
        if place.cloud in KINDS:
            return node_stock(offer, _of_partition(answer, place), self.now())
        if answer is not None:
            raise Refused(f"{place.cloud} does not let us in: {answer}; mend that and run `sky check {place.cloud}`")
        source = self._source_of(offer, place)
        return cloud_stock(offer, place, None if source is None else answers[source], self.now())


@dataclass(frozen=True)
class RateCard:
    """Prices and memory of what no public catalogue prices."""

    rates: Sequence[Rate]
    memory: Callable[[], Mapping[str, float]] = catalog.memory_gib
    """Of accelerators by their names in lower case, in GiB; not asked where a rate says it."""

    def dollars(self, place: Place, node: Node, accelerators: int) -> float | None:
        """An hour of so many accelerators of that node, or with none of them of the whole node; None without a rate."""
        if accelerators:
            rate = self._rate(place, node.accelerator or "", "dollars_per_accelerator_hour")
            return None if rate is None else round(rate * accelerators, 6)
        parts = [
            (self._rate(place, ON_PROCESSORS, "dollars_per_cpu_hour"), node.processors),
            (self._rate(place, ON_PROCESSORS, "dollars_per_gib_hour"), node.gib),
        ]
        named = [(rate, amount) for rate, amount in parts if rate is not None]
        if not named or any(rate and amount is None for rate, amount in named):
            return None
        return round(sum(rate * (amount or 0) for rate, amount in named), 6)

    def gib(self, place: Place, accelerator: str) -> float:
        """0 where nobody knows, so that no model fits."""
        return self._rate(place, accelerator, "accelerator_gib") or self.memory().get(accelerator.lower(), 0.0)

    def _rate(self, place: Place, accelerator: str, column: str) -> float | None:
        cell = str(place)
        fitting = [
            rate
            for rate in self.rates
            if rate.accelerator.lower() == accelerator.lower()
            and getattr(rate, column) is not None
            and is_within(cell, rate.cell)
        ]
        # Of rates as exact as each other the first one counts: max keeps it.
        return getattr(max(fitting, key=lambda rate: len(rate.cell)), column) if fitting else None


def node_offers(place: Place, nodes: Sequence[Node], card: RateCard, accelerators: Sequence[str]) -> Iterator[Offer]:
    """For accelerators: 1, 2, 4 … and all of a node. For processors, if asked: whole nodes, whatever else they hold."""
    asked = {name.lower() for name in accelerators}
    by_kind: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in nodes:
        if node.accelerator and (not asked or node.accelerator.lower() in asked):
            for count in _counts(node.accelerators):
                by_kind[node.accelerator, count].append(node)
        if ON_PROCESSORS.lower() in asked:
            dollars, host = card.dollars(place, node, 0), _host_gib(node)
            yield Offer(str(place), ON_PROCESSORS, 0, 0.0, host, use_spot=False, dollars_per_hour=dollars)
    for (name, count), having in by_kind.items():
        known = [node.gib for node in having if node.gib is not None]
        yield Offer(
            cell=str(place),
            accelerator=name,
            accelerators=count,
            accelerator_gib=card.gib(place, name),
            host_gib=min(known) if len(known) == len(having) else None,
            use_spot=False,
            dollars_per_hour=card.dollars(place, having[0], count),
        )


def node_stock(offer: Offer, nodes: Sequence[Node], at: float) -> Stock:
    """How many replicas of that offer fit into what is free of each node."""
    if offer.accelerators:
        having = [node for node in nodes if (node.accelerator or "").lower() == offer.accelerator.lower()]
        what, size = offer.accelerator, offer.accelerators
        # A node whose processors are all taken has no use for its accelerators.
        counts = [
            (node.free_accelerators if node.free_processors != 0 else 0, node.accelerators, size) for node in having
        ]
    else:
        having = [node for node in nodes if _host_gib(node) == offer.host_gib]
        what = "processors"
        counts = [(node.free_processors, node.processors, node.processors or 1) for node in having]
    if any(free is None or total is None for free, total, _ in counts):
        return Stock("unknown", at, 0.0, f"{offer.cell} does not let us count its free {what}")
    free, total = (sum(count[column] or 0 for count in counts) for column in (0, 1))
    replicas = sum(int((count[0] or 0) // count[2]) for count in counts)
    words = f"{offer.cell}: {free:g} of {total:g} {what} are free, room for {replicas} of {offer}{_missing(offer)}"
    load = 1 - free / total if total else None
    return Stock("free" if replicas else "none", at, 1.0, words, replicas, load)


def cloud_stock(offer: Offer, place: Place, answers: Answers | SkyferryError | None, at: float) -> Stock:
    """What a public cloud says; None, and an offer that is not among the answers, are a cloud that says nothing."""
    if isinstance(answers, SkyferryError):
        raise answers
    said = None if answers is None else answers.get(offer)
    if said is None:
        return Stock("unknown", at, 0.0, f"{place.cloud} does not say what it has of {offer}")
    if isinstance(said, SkyferryError):
        raise said
    return said.stock(at)


def _missing(offer: Offer) -> str:
    """What somebody has to add before such an offer can be taken."""
    missing = [
        *(["no price"] if offer.dollars_per_hour is None else []),
        *(["no known memory"] if offer.accelerators and not offer.accelerator_gib else []),
    ]
    return f"; it has {' and '.join(missing)}: add a rate for it" if missing else ""


def _host_gib(node: Node) -> float | None:
    return None if node.gib is None else float(round(node.gib))  # nodes of one kind differ by a few MiB


def _counts(accelerators: int) -> list[int]:
    powers = [1 << power for power in range(accelerators.bit_length()) if 1 << power <= accelerators]
    return sorted({*powers, accelerators} - {0})


def _of_partition(nodes: Sequence[Node], place: Place) -> Sequence[Node]:
    if place.zone is None:
        return nodes
    found = [node for node in nodes if place.zone in node.partitions]
    if not found:
        names = {name for node in nodes for name in node.partitions}
        raise Refused(f"{place.zone} is no partition of {place.cloud}/{place.region}; {closest(place.zone, names)}")
    return found


def _unanswered(place: Place, accelerators: Sequence[str]) -> Iterator[Offer]:
    for name in accelerators or (ON_PROCESSORS,):
        is_plain = name.lower() == ON_PROCESSORS.lower()
        yield Offer(
            cell=str(place),
            accelerator=ON_PROCESSORS if is_plain else name,
            accelerators=0 if is_plain else 1,
            accelerator_gib=0.0,
            host_gib=None,
            use_spot=False,
            dollars_per_hour=None,
        )


def _refuse_unknown(accelerators: Sequence[str], here: set[str]) -> None:
    """The catalogue of all clouds is read only where a name is not found in the cells that were asked."""
    if _unknown(accelerators, {*here, ON_PROCESSORS}):
        known = {*here, *catalog.accelerator_names(), ON_PROCESSORS}
        for name in _unknown(accelerators, known):
            raise Refused(f"nobody has an accelerator called {name}; {closest(name, known)}")


def _unknown(accelerators: Sequence[str], known: set[str]) -> list[str]:
    names = {name.lower() for name in known}
    return [name for name in accelerators if name.lower() not in names]


def _source(number: int, source: StockSource) -> tuple[str, str]:
    """The key of what it answers, which names it where it does not."""
    return (source.cloud, f"stock source {number + 1}")


def _order(offer: Offer) -> tuple[Any, ...]:
    dollars = float("inf") if offer.dollars_per_hour is None else offer.dollars_per_hour
    return (offer.cell, offer.accelerator, offer.accelerators, offer.use_spot, dollars, offer.instance or "")


def _name(key: Any) -> str:
    return "/".join(part for part in key if part) if isinstance(key, tuple) else str(key)


def _bound(function: Callable[..., Answer], *arguments: Any) -> Callable[[], Answer]:
    return lambda: function(*arguments)


def _ask(questions: Mapping[Key, Callable[[], Answer]], seconds: float) -> dict[Key, Answer | SkyferryError]:
    """All of them side by side; what is not answered in time is Unavailable, and nobody waits for it any more."""
    answers: dict[Key, Answer | SkyferryError] = {
        key: Unavailable(f"{_name(key)} gave no answer within {seconds:g} s") for key in questions
    }
    told: queue.Queue[tuple[Key, Answer | SkyferryError]] = queue.Queue()

    def ask(key: Key, question: Callable[[], Answer]) -> None:
        try:
            told.put((key, question()))
        except SkyferryError as error:
            told.put((key, error))
        except Exception as error:  # noqa: BLE001 - the port: what cannot be asked is unknown, never an error
            told.put((key, Unavailable(f"{_name(key)} could not be asked: {type(error).__name__}: {error}")))

    # Threads of their own: a pool would wait, at the latest when Python ends, for a source that never answers.
    for key, question in questions.items():
        Thread(target=ask, args=(key, question), daemon=True).start()
    deadline = time.monotonic() + seconds
    for _ in questions:
        try:
            key, answer = told.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        answers[key] = answer
    return answers
