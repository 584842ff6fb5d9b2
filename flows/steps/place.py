"""Place the replicas of a release: each in the best cell that does not say no."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prefect import get_run_logger
from prefect.futures import PrefectFuture, as_completed

from blocks.errors import EngineEnded, NoCapacity, NotReady, Refused, SkyferryError, Unexplained
from blocks.ports.fleet import EngineSettings, Replica, ReplicaOrder
from blocks.ports.gateway import Server
from blocks.ports.hub import Model
from blocks.ports.market import Offer, Stock
from blocks.service import Service
from blocks.stores.mirrors import Manifest
from flows.boards.artifacts import Artifact, show
from flows.boards.placement import offers_table, placement_board, plan_board
from flows.policy.placement.attempts import Attempt, Attempts, note
from flows.policy.placement.causes import CELLS_WITH_ONE_CAUSE, is_one_cause
from flows.policy.placement.plan import Placement, PlacementRules, check_caps, plan_placement
from flows.policy.releases.ledger import Release, mirror_prefix, note_start, replica_orders
from flows.policy.sizing.sizing import Fit, Need, fit
from flows.steps.drain import put_in_slot
from flows.steps.undo import traffic_to_live
from flows.tasks.fleet import Started, list_replicas, start_replica
from flows.tasks.gateway import detach, list_servers, see_them_up
from flows.tasks.ledger import read_record, update_ledger
from flows.tasks.market import ask_for_stock, list_offers, note_attempt, read_attempts
from flows.tasks.mirror import read_manifest, size_up

NOT_READY_AT_MOST = 2
"""Offers on which the engine may not become ready: it is the model then, and no other machine mends it."""


class NotAll(SkyferryError):
    """Not all that was asked for could be had: what could be serves, and here is why the rest does not."""

    def __init__(self, started: Sequence[Started], wanted: int, why: SkyferryError) -> None:
        super().__init__(f"{len(started)} of {wanted} replicas are ready and serve; of the others: {why}")
        self.started, self.why = tuple(started), why


@dataclass(frozen=True)
class Survey:
    """How much a replica needs, and what there is to choose from."""

    need: Need
    offers: tuple[Offer, ...]
    stock: tuple[Stock, ...]
    fits: tuple[Fit, ...]
    attempts: Attempts

    def plan(
        self,
        service: Service,
        rules: PlacementRules,
        wanted: int,
        *,
        standing: Sequence[Replica] = (),
        neighbours: Sequence[Replica] = (),
        said_no: Mapping[Offer, str] | None = None,
        is_only_a_plan: bool = False,
    ) -> Placement:
        return plan_placement(
            wanted,
            self.offers,
            self.stock,
            self.fits,
            self.attempts,
            rules,
            standing=standing,
            neighbours=neighbours,
            said_no=said_no or {},
            service_cap_dollars_per_hour=service.max_dollars_per_hour,
            now=time.time(),
            even_where_refused=is_only_a_plan,
        )

    def offer_under(self, replica: Replica | None) -> Offer | None:
        """What a replica was launched on, as far as one can tell."""
        if replica is None:
            return None
        here = [offer for offer in self.offers if offer.cell == replica.cell]
        same_price = [offer for offer in here if offer.dollars_per_hour == replica.dollars_per_hour]
        return next(iter([*same_price, *here]), None)


def survey(service: Service, need: Need, rules: PlacementRules) -> Survey:
    """Ask what is on offer, what of it fits and is in stock, and how earlier launches went."""
    offers = list_offers(service.fleet, rules.cells, rules.accelerators)
    stock = ask_for_stock(service.fleet, offers)
    return Survey(need, offers, stock, tuple(fit(need, offer) for offer in offers), read_attempts(service.store))


def plan_fleet(
    service: Service,
    model: Model,
    engine: EngineSettings,
    rules: PlacementRules,
    *,
    release: str = "",
    is_only_a_plan: bool,
) -> Placement:
    """Where the replicas of a model would go, from its mirror or else from the hub; nothing is started or written.

    Those of the `release` that stand already stay where they are. Refused where the others can go nowhere. A cell that
    would refuse to launch anything, as without credentials, counts only where `is_only_a_plan`.
    """
    prefix = mirror_prefix(model.repo, model.commit)
    if (manifest := read_manifest(service.store, prefix)) is not None:
        need = _need_of_mirror(service, manifest, prefix, engine)
    else:
        need = _need_of_model(service, model, engine)
    if need.hint:
        get_run_logger().warning("%s.", need.hint)
    view = survey(service, need, rules)
    replicas = list_replicas(service.fleet, service.name)
    standing = [replica for replica in replicas if replica.release == release]
    placement = view.plan(
        service,
        rules,
        max(0, service.replicas - len(standing)),
        standing=standing,
        neighbours=[replica for replica in replicas if replica.release != release],
        is_only_a_plan=is_only_a_plan,
    )
    show(f"placement-{service.name}", lambda: plan_board(model.repo, service.replicas, need.arithmetic, placement))
    show(f"offers-{service.name}", lambda: offers_table(placement))
    return placement


def start_replicas(
    service: Service,
    release: Release,
    timeout_seconds: float,
    *,
    lost: Sequence[Replica] = (),
    wanted: int | None = None,
) -> Sequence[Started]:
    """So many replicas of a release, or all by day, ready and in its slot, and nothing in it that runs no more.

    Where those that were `lost` stood, the next launch is taken to be less likely to succeed. NotAll where some of a
    live release's are there now, and others cannot be had.
    """
    if release.state == "in progress" and not release.stages:
        # Whatever an earlier release left in the split, this one begins without traffic.
        traffic_to_live(service, read_record(service.store, service.name))
    wanted = service.replicas if wanted is None else wanted
    before = list_servers(service.gateway, service.name)
    drained, down = _in_state("draining", before), _in_state("down", before)
    started, error = _place(service, release, timeout_seconds, lost, wanted, down)
    servers = list_servers(service.gateway, service.name)
    running = [replica for replica in list_replicas(service.fleet, service.name) if replica.release == release.id]
    ready = {one.replica.name for one in started}
    taken_out = _in_state("draining", servers) - drained  # by a flow that stops it, which began after this one
    placed = [replica for replica in running if replica.name in ready and replica.address not in taken_out]
    put_in_slot(service, release.slot, release.id, placed)
    clear_slot(service, release)
    see_them_up(service.gateway, service.name, release.slot, {replica.address for replica in placed})
    for one in started:
        if not one.was_running:
            update_ledger(service.store, service.name, partial(note_start, seconds=one.seconds))
    if error is not None and started and release.state == "live":
        raise NotAll(started, wanted, error) from error
    if error is not None:
        raise error
    return started


def clear_slot(service: Service, release: Release) -> None:
    """What another release has left there, maybe to answer for a dead one, and what runs no more.

    A fleet may list only a part of what runs: who answers users though no fleet knows of it goes on answering. A
    release that has had no traffic has no users yet, so its slot is its own replicas' alone.
    """
    # The servers first: whatever another run puts there after that is not taken for one that runs no more.
    servers = list_servers(service.gateway, service.name)
    releases = {replica.address: replica.release for replica in list_replicas(service.fleet, service.name)}
    for server in servers:
        if server.slot != release.slot or releases.get(server.address) == release.id:
            continue
        may_have_users = release.state == "live" or bool(release.stages)
        if server.address not in releases and server.state == "up" and may_have_users:
            get_run_logger().warning(
                "%s in slot %s answers users of %s, and the fleet does not list it, so it stays: see with the fleet's "
                "own tools what runs there; once it is down, the next start takes it out.",
                server.address,
                server.slot,
                service.name,
            )
        else:
            detach(service.gateway, service.name, server.slot, server.address)


def _in_state(state: str, servers: Sequence[Server]) -> set[str]:
    return {server.address for server in servers if server.state == state}


def reconcile_replicas(service: Service, release: Release, had: Sequence[Replica], timeout_seconds: float) -> None:
    """Start the replicas that the release `had`, or should have, and has no more; their machine may have been taken."""
    running = [replica for replica in list_replicas(service.fleet, service.name) if replica.release == release.id]
    # The gateway knows within a second; a fleet in a cloud may ask for its machines every half minute only.
    down = {server.address for server in list_servers(service.gateway, service.name) if server.state == "down"}
    whole = {replica.name for replica in running if replica.address not in down}
    if len(whole) < service.replicas:
        get_run_logger().warning("%d of %d replicas of %s are left.", len(whole), service.replicas, release.id)
        lost = [replica for replica in had if replica.name not in whole]
        start_replicas(service, release, timeout_seconds, lost=lost)


def _place(
    service: Service,
    release: Release,
    timeout_seconds: float,
    lost: Sequence[Replica],
    wanted: int,
    down: Collection[str],
) -> tuple[list[Started], SkyferryError | None]:
    """Adopt the replicas of the release that stand, and start each of the others in the best cell that does not say no.

    Returns once none is still starting: those that are ready, and the first error where not all of them are.
    """
    manifest = read_manifest(service.store, release.mirror_prefix)
    if manifest is None:
        raise Refused(f"{release.mirror_prefix} is no complete mirror; run mirror-model for {release.repo} first")
    if release.engine.build is None:
        get_run_logger().warning(
            "%s is from a time when releases recorded no engine: what starts is what the fleet's block says today.",
            release.id,
        )
    standing = list_replicas(service.fleet, service.name)
    view = survey(service, _need_of_mirror(service, manifest, release.mirror_prefix, release.engine), release.placement)
    placing = _Placing(
        service,
        release,
        _with_losses(service, view, lost),
        timeout_seconds,
        neighbours=tuple(replica for replica in standing if replica.release != release.id),
        wanted=wanted,
        board=Artifact(f"placement-{service.name}"),
        offers_board=Artifact(f"offers-{service.name}"),
    )
    by_name = {replica.name: replica for replica in standing}

    def rank(order: ReplicaOrder) -> tuple[bool, bool]:
        return order.name not in by_name, order.name in by_name and by_name[order.name].address in down

    # Whatever their numbers are, those that stand count first: else one beside them would be one too many. Of those,
    # the ones that are down come last: fewer may be wanted than stand, and one of the others is ready at once.
    orders = sorted(replica_orders(release, service.replicas), key=rank)
    placing.run(orders[:wanted], by_name)
    return placing.started, placing.error


def _with_losses(service: Service, view: Survey, lost: Sequence[Replica]) -> Survey:
    """A machine that was taken away says of its cell what a no to a launch says."""
    for replica in lost:
        if (offer := view.offer_under(replica)) is not None:
            loss = _attempt_on(offer, said_no=f"{replica.name} was lost there", seconds=None)
            note_attempt(service.store, loss)
            view = replace(view, attempts=note(view.attempts, loss))
    return view


def _attempt_on(offer: Offer, *, said_no: str | None, seconds: float | None) -> Attempt:
    """What became of a launch, just now."""
    return Attempt(
        cell=offer.cell,
        accelerator=offer.accelerator,
        accelerators=offer.accelerators,
        use_spot=offer.use_spot,
        at=time.time(),
        seconds=seconds,
        said_no=said_no,
    )


def _need_of_mirror(service: Service, manifest: Manifest, prefix: str, engine: EngineSettings) -> Need:
    def read(path: str) -> Iterator[bytes]:
        return service.store.read(prefix + path)

    return size_up(manifest.repo, {file.path: file.size_bytes for file in manifest.files}, read, engine)


def _need_of_model(service: Service, model: Model, engine: EngineSettings) -> Need:
    files = {file.path: file for file in model.files}

    def read(path: str) -> Iterator[bytes]:
        return service.hub.read(model, files[path])

    return size_up(model.repo, {path: file.size_bytes for path, file in files.items()}, read, engine)


@dataclass(frozen=True)
class _Try:
    """One replica on its way into one cell."""

    order: ReplicaOrder
    offer: Offer
    begun: float

    @property
    def as_replica(self) -> Replica:
        """What it will be, for the caps and the spread."""
        order, offer = self.order, self.offer
        return Replica(
            order.name, order.service, order.release, offer.cell, "", dollars_per_hour=offer.dollars_per_hour
        )

    def ended(self, said_no: str | None) -> Attempt:
        return _attempt_on(self.offer, said_no=said_no, seconds=time.time() - self.begun)


@dataclass
class _Placing:
    """The replicas of one release on their way into cells."""

    service: Service
    release: Release
    view: Survey
    timeout_seconds: float
    neighbours: tuple[Replica, ...]
    wanted: int
    board: Artifact
    offers_board: Artifact
    started: list[Started] = field(default_factory=list)
    error: SkyferryError | None = None
    _no_capacity: dict[Offer, str] = field(default_factory=dict)
    _not_ready: set[Offer] = field(default_factory=set)
    _unexplained: list[tuple[Unexplained, Attempt]] = field(default_factory=list)
    """The last noes in a row that nobody could explain; what they say of their cells is not known yet."""
    _starting: "dict[PrefectFuture[Started], _Try]" = field(default_factory=dict)

    def run(self, orders: Sequence[ReplicaOrder], standing: Mapping[str, Replica]) -> None:
        # Adopting needs no more than the offer under what stands.
        under = {order: self.view.offer_under(standing.get(order.name)) for order in orders}
        try:
            for order, offer in under.items():
                if offer is not None:
                    self._start(order, offer)
            self._place([order for order, offer in under.items() if offer is None])
            while self._starting:
                self._settle(next(as_completed(list(self._starting))))
            self._note_unexplained()
            if self.error is None:
                running = [one.replica for one in self.started]
                rules, cap = self.release.placement, self.service.max_dollars_per_hour
                check_caps(running, self.neighbours, rules, cap)
        finally:
            # Nobody waits here for what still starts: a cancelled run has 30 s, and whatever starts for a release that
            # the ledger gives up meanwhile stops itself.
            self.started.sort(key=lambda one: one.replica.name)
            self._show()

    def _place(self, orders: Sequence[ReplicaOrder]) -> None:
        """Choose cells for these replicas from all that is known by now, and start them there."""
        if not orders or self.error is not None:
            return
        try:
            plan = self.view.plan(
                self.service,
                self.release.placement,
                len(orders),
                standing=[*(t.as_replica for t in self._starting.values()), *(one.replica for one in self.started)],
                neighbours=self.neighbours,
                said_no=self._no_capacity,
            )
        except SkyferryError as error:
            if self.release.state == "live":
                self._place(orders[:-1])  # users are better off with some of them than with none
            self.error = error
            return
        self.offers_board.show(lambda: offers_table(plan), at_once=True)
        for order, offer in zip(orders, plan.placed, strict=True):
            self._start(order, offer)
        self._show()

    def _start(self, order: ReplicaOrder, offer: Offer) -> None:
        service, order = self.service, replace(order, disk_bytes=self.view.need.disk_bytes)
        future = start_replica.submit(
            service.fleet, service.engine_client, service.store, order, offer, self.timeout_seconds
        )
        self._starting[future] = _Try(order, offer, time.time())

    def _settle(self, future: "PrefectFuture[Started]") -> None:
        """Take note of how one try ended; where the cell said no, the replica goes to another one at once."""
        tried = self._starting.pop(future)
        try:
            started = future.result()
        except NoCapacity as no:
            get_run_logger().warning("%s", no)
            self._no_capacity[tried.offer] = no.reason
            self._learn(no, tried)
            self._place([tried.order])
        except SkyferryError as error:
            self.error = self.error or error
        else:
            self._note_unexplained()
            self.started.append(started)
            if not started.was_running:
                note_attempt(self.service.store, tried.ended(None))
            self._show()

    def _learn(self, no: NoCapacity, tried: _Try) -> None:
        """What a no says of its cell is kept; where it is no matter of cells, no further one is asked."""
        attempt = tried.ended(no.reason)
        if isinstance(no, Unexplained):
            self._unexplained.append((no, attempt))
            if self._is_one_cause:
                self.error = self.error or Refused(
                    f"{CELLS_WITH_ONE_CAUSE} cells in a row say the same, so it is no matter of theirs, and no other "
                    f"one is asked: {no}; look for its cause in the credentials, the account and the fleet's task"
                )
            return
        self._note_unexplained()
        note_attempt(self.service.store, attempt)
        if isinstance(no, NotReady):
            self._not_ready.add(tried.offer)
        if len(self._not_ready) >= NOT_READY_AT_MOST:
            what = "the engine ended by itself" if isinstance(no, EngineEnded) else "no engine was ready in time"
            self.error = self.error or Refused(
                f"on {NOT_READY_AT_MOST} different offers {what}, so it is the model or its settings, and no third one "
                f"is rented: {no}"
            )

    @property
    def _is_one_cause(self) -> bool:
        return is_one_cause([no for no, _ in self._unexplained])

    def _note_unexplained(self) -> None:
        """They were the cells' own, unless they were one cause."""
        for _, attempt in () if self._is_one_cause else self._unexplained:
            note_attempt(self.service.store, attempt)
        self._unexplained.clear()

    def _show(self) -> None:
        self.board.show(
            lambda: placement_board(
                self.release, self.wanted, self.view.need.arithmetic, self.started, self._no_capacity
            ),
            at_once=True,
        )
