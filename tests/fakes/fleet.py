"""A fleet and an engine in memory, which fail when a test asks for it.

What changes while replicas start is no `dict`: Prefect walks through those of a task's arguments, in other threads.
"""

from collections import Counter, UserDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Self

from blocks.engines.known import canonical
from blocks.errors import NoCapacity, SkyferryError, Unavailable, Unsound
from blocks.http.addresses import in_one_spelling
from blocks.ports.engine import Answer, Load, Prompt
from blocks.ports.fleet import (
    POOLING,
    EngineBuild,
    EngineChoice,
    ModelKind,
    Replica,
    ReplicaOrder,
    ResolvedEngine,
)
from blocks.ports.market import ON_PROCESSORS, Offer
from blocks.stores.kept import sha256_of

OFFER = Offer(
    cell="here",
    accelerator=ON_PROCESSORS,
    accelerators=0,
    accelerator_gib=0,
    host_gib=16,
    use_spot=False,
    dollars_per_hour=0.5,
)


@dataclass
class FakeFleet:
    """Replicas run from the moment they are launched; no two ever have the same address."""

    running: UserDict[tuple[str, str], Replica] = field(default_factory=UserDict)
    """By installation and name; all installations share it."""
    launch_failures: deque[SkyferryError] = field(default_factory=deque)
    """Each is raised once, by the next launches in turn."""
    says_no: UserDict[str, str] = field(default_factory=UserDict)
    """What a cell says to each launch."""
    ends_in: UserDict[str, str] = field(default_factory=UserDict)
    """The last words of the engines that end by themselves as they start, by cell."""
    without_address: set[str] = field(default_factory=set)
    """Cells that give none to the replicas in them."""
    unlisted: set[str] = field(default_factory=set)
    """The names of replicas that run, and that it leaves out where it lists them."""
    orders: list[ReplicaOrder] = field(default_factory=list)
    """Every launch that was asked for, also those that failed or adopted."""
    stopped: list[str] = field(default_factory=list)
    """The names of the replicas that were stopped while they ran, in turn."""
    host: str = "127.0.0.1"
    """Of each address, as this fleet spells it."""
    has_keys: bool = False
    installation: str = ""
    inherited: frozenset[str] = frozenset()
    on_launch: Callable[[ReplicaOrder], None] = lambda _: None
    """What happens while a launch goes on."""
    on_resolve: Callable[[], object] = lambda: None
    """What happens once an engine was resolved."""
    task: str = "run: an engine"
    """What the fleet's block says is started."""
    _ended: UserDict[tuple[str, str], Replica] = field(default_factory=UserDict)
    _logs: UserDict[str, str] = field(default_factory=UserDict)
    _ports: Iterator[int] = field(default_factory=lambda: count(9000))

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        return replace(self, installation=installation, inherited=frozenset(inherited))

    def resolve_engine(self, choice: EngineChoice, earlier: Collection[EngineBuild] = ()) -> ResolvedEngine:
        del earlier  # nothing is resolved anew
        body = (choice.task or self.task).encode()
        build = EngineBuild(
            name=choice.name or "fake",
            version=choice.version or "1",
            flags=canonical(choice.flags),
            environment=tuple(sorted(choice.environment.items())),
            task=sha256_of(body),
        )
        self.on_resolve()
        return ResolvedEngine(build, {build.task: body})

    def launch(self, order: ReplicaOrder, offer: Offer) -> Replica:
        self.orders.append(order)
        self.on_launch(order)
        if self.launch_failures:
            raise self.launch_failures.popleft()
        key = self._key_of(order.name)
        if key in self.running:
            return self.running[key]
        if offer.cell in self.says_no:
            raise NoCapacity(offer.cell, self.says_no[offer.cell])
        address = f"{self.host}:{next(self._ports)}"
        launched = Replica(
            order.name,
            order.service,
            order.release,
            offer.cell,
            "" if offer.cell in self.without_address else address,
            launched_at=0,
            dollars_per_hour=offer.dollars_per_hour,
        )
        self._logs[order.name] = self.ends_in.get(offer.cell, f"{order.mirror_prefix} is served at {address}")
        (self._ended if offer.cell in self.ends_in else self.running)[key] = launched
        return launched

    def replicas(self, service: str) -> tuple[Replica, ...]:
        standing = sorted([*self.running.data.items()], key=lambda item: item[1].name)
        own = (replica for key, replica in standing if replica.service == service and self._is_own(key, replica))
        return tuple(replica for replica in own if replica.name not in self.unlisted)

    def stop(self, name: str) -> None:
        self._ended.pop(self._key_of(name), None)
        if self.running.pop(self._key_of(name), None) is not None:
            self.stopped.append(name)

    def has_ended(self, name: str) -> bool:
        return self._key_of(name) in self._ended

    def log_tail(self, name: str) -> str:
        return self._logs.get(name, "")

    def _key_of(self, name: str) -> tuple[str, str]:
        """An unmarked one that is inherited is under its old key."""
        old = self.running.get(("", name))
        return ("", name) if old is not None and old.release in self.inherited else (self.installation, name)

    def _is_own(self, key: tuple[str, str], replica: Replica) -> bool:
        return key[0] == self.installation or (not key[0] and replica.release in self.inherited)

    def key_of(self, release: str) -> str | None:
        return f"key of {release}" if self.has_keys else None

    def kill(self, name: str) -> None:
        """It dies behind the fleet's back."""
        del self.running[self._key_of(name)]


@dataclass
class FakeEngine:
    """Answers at the addresses of a fleet's replicas."""

    fleet: FakeFleet
    never_ready: set[str] = field(default_factory=set)
    """Releases whose replicas never become healthy."""
    never_ready_in: set[str] = field(default_factory=set)
    """Cells in which none does."""
    unhealthy: set[str] = field(default_factory=set)
    """Addresses."""
    in_flight_at: dict[str, int | None] = field(default_factory=dict)
    """By address; None where it cannot be known, and 0 where nothing is said."""
    waiting_at: dict[str, int] = field(default_factory=dict)
    """By address; 0 where nothing is said."""
    asked: Counter[str] = field(default_factory=Counter)
    """How many prompts, by address."""
    says: dict[str, Answer] = field(default_factory=dict)
    """By address, in place of an answer that is right."""
    generated: Counter[str] = field(default_factory=Counter)
    """Tokens, by address."""
    hung: set[str] = field(default_factory=set)
    """Addresses that say they are well and complete nothing."""
    failing_completions: int = 0
    """So many of the next completions raise Unavailable."""
    unsound: dict[str, str] = field(default_factory=dict)
    """Releases whose replicas answer what nobody can use, and why."""

    def is_healthy(self, replica: Replica) -> bool:
        standing = self._at(replica)
        return (
            standing is not None
            and standing.release not in self.never_ready
            and standing.cell not in self.never_ready_in
            and replica.address not in self.unhealthy
        )

    def complete(self, replica: Replica, kind: ModelKind = "chat") -> str:
        if self.failing_completions > 0:
            self.failing_completions -= 1
            raise Unavailable(f"{replica.name} was told to fail")
        if not self.is_healthy(replica):
            raise Unavailable(f"nothing answers at {replica.address}")
        if replica.address in self.hung:
            raise Unavailable(f"{replica.name} hangs")
        if replica.release in self.unsound:
            raise Unsound(f"{replica.name} answers: {self.unsound[replica.release]}")
        self.generated[replica.address] += kind not in POOLING
        return f"a {kind}"

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        self.asked[replica.address] += 1
        if not self.is_healthy(replica):
            return Answer(status=None, total_ms=1)
        if replica.address in self.says:
            return replace(self.says[replica.address], total_ms=100)
        if prompt.expects == "vector":
            return Answer(status=200, vector=(0.6, 0.8), total_ms=100, is_whole=True)
        if prompt.expects == "ranking":
            scores = tuple(1 / rank for rank in range(1, 1 + len(prompt.documents)))
            return Answer(status=200, scores=scores, total_ms=100, is_whole=True)
        return Answer(
            status=200,
            text='{"hello": 1}',
            tool_arguments="{}" if prompt.expects == "tool" else None,
            first_token_ms=50,
            total_ms=100,
            is_whole=True,
        )

    def load(self, replica: Replica) -> Load | None:
        running = None if self._at(replica) is None else self.in_flight_at.get(replica.address, 0)
        if running is None:
            return None
        return Load(running, self.waiting_at.get(replica.address, 0), generated_tokens=self.generated[replica.address])

    def _at(self, asked: Replica) -> Replica | None:
        # A copy: replicas start in threads of their own.
        where = in_one_spelling(asked.address)
        standing = list(self.fleet.running.data.values())
        return next((found for found in standing if in_one_spelling(found.address) == where), None)
