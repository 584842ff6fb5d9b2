"""Hold one stage: look at users and engines, and probe where too few users come, until the gates rule."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event

from prefect import get_run_logger
from prefect.futures import PrefectFuture

from blocks.errors import Unavailable
from blocks.ports.engine import Load
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Outcome
from blocks.service import Service
from flows.boards.artifacts import Artifact
from flows.boards.canary import canary_board
from flows.policy.gating.decide import Ruling, rule
from flows.policy.gating.engines import Engines, Meter
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.judge import Judge
from flows.policy.gating.kinds import concerns
from flows.policy.gating.outcomes import speaks
from flows.policy.gating.probes import Pair, ProbeJudge, probes_missing, seconds_between_rounds
from flows.policy.gating.sample_size import forecast
from flows.policy.gating.wording import Words, words_of
from flows.policy.releases.ledger import Release, Stage, owned_by
from flows.policy.releases.rollback import hold_while_blocked, rollback_blockers
from flows.runtime.runs import own_run_id
from flows.tasks.engine import LoadReader, loads_of, probe
from flows.tasks.gateway import drain, hold_stage, set_weight
from flows.tasks.ledger import record_of


@dataclass(frozen=True)
class Stable:
    """The live release, to which every roll-back goes."""

    release: Release
    replicas: Sequence[Replica]
    had: int
    """Servers in its slot when its candidate got the first weight."""

    def rollback_blockers(self, service: Service) -> str:
        """Why it could not take all of the traffic now, in words; nothing where it could."""
        try:
            servers = [s for s in service.gateway.servers(service.name) if s.slot == self.release.slot]
        except Unavailable as error:
            return f"the gateway does not say how it is: {error}"
        loads = loads_of(service.engine_client, self.replicas)
        return rollback_blockers(
            servers,
            {replica.address: loads[replica.name] for replica in self.replicas},
            had=self.had,
            parallel_requests=self.release.engine.parallel_requests,
        )


@dataclass
class StageWatch:
    """What is looked at while the candidate has one weight of the traffic."""

    service: Service
    release: Release
    stages_percent: Sequence[int]
    weight: int
    """In percent."""
    judge: Judge
    probe_judge: ProbeJudge
    board: Artifact
    candidates: Sequence[Replica]
    stable: Stable
    requests_a_second: float | None
    """Of the service, before this stage; None where nobody knows."""
    outcomes: int = 0
    """Requests of both slots that asked a model and ended in this stage."""
    _run_id: str = field(default_factory=own_run_id)
    _reader: LoadReader = field(init=False)
    _meters: tuple[Meter, Meter] = field(default_factory=lambda: (Meter(), Meter()))
    _blockers: str = ""
    _rounds: int = 0
    _next_round_at: float = 0.0
    """In seconds of the stage."""
    _answered: "SimpleQueue[PrefectFuture[tuple[Pair, ...]]]" = field(default_factory=SimpleQueue)
    _is_probing: bool = False
    _is_over: Event = field(default_factory=Event)

    def hold(self) -> Stage:
        """Give the weight, and wait until the gates say promote or roll back; a bad cell is drained on the way."""
        get_run_logger().info("%s %%: this stage takes %s", self.weight, self._forecast)
        service = self.service
        # Before the weight, so that what it brings is in the differences, and nobody's requests wait to be looked at.
        self._note_loads(loads_of(service.engine_client, [*self.candidates, *self.stable.replicas]))
        set_weight(service.gateway, service.name, self.release.slot, self.weight)
        with (
            LoadReader(service.engine_client, [*self.candidates, *self.stable.replicas]) as self._reader,
            self._until_over(),
        ):
            ruling, seconds = hold_stage(service.gateway, service.name, self.weight, self._look)
            while ruling.bad_cells:
                get_run_logger().warning("%s", self._words(ruling, seconds).text)
                self.probe_judge.drop(ruling.bad_cells)
                dropped = self.judge.drop(ruling.bad_cells)
                self.candidates = [replica for replica in self.candidates if replica.address not in dropped]
                for address in dropped:
                    drain(service.gateway, service.name, self.release.slot, address)
                ruling, seconds = hold_stage(service.gateway, service.name, self.weight, self._look, seconds)
        words, evidence = self._words(ruling, seconds).text, self.judge.evidence()
        get_run_logger().info("%s", words)
        return Stage(
            share_percent=self.weight,
            verdict=ruling.verdict,
            reason=words,
            requests=evidence.requests,
            seconds=seconds,
            evidence=evidence,
            limits=self.judge.limits,
            engines=self._engines,
            barred_by=self._blockers,
            probed=self._probed,
        )

    def _words(self, ruling: Ruling, seconds: float) -> Words:
        return words_of(ruling, self.judge.evidence(), self.judge.limits, seconds, self._probed)

    @contextmanager
    def _until_over(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._is_over.set()

    def _look(self, outcomes: Sequence[Outcome], is_complete: bool, seconds: float) -> Ruling:  # noqa: FBT001 - see hold_stage
        try:
            # A roll-back by hand ends the stage within a second, and not at its deadline.
            owned_by(record_of(self.service.store, self.service.name), self._run_id)
        except Unavailable as error:
            # The next weight is not given without the ledger; until then, what users see is what counts.
            get_run_logger().warning("The ledger cannot be read: %s", error)
        if not is_complete:
            self.judge.begin_anew()
        outcomes = [outcome for outcome in outcomes if concerns(self.release.engine.kind, outcome)]
        self.outcomes += sum(map(speaks, outcomes))
        self.judge.take(outcomes, seconds)
        self._note_loads(self._reader.news())
        evidence, limits = self.judge.evidence(), self.judge.limits
        self._probe(evidence, seconds)
        ruling = rule(evidence, limits, seconds, self._probed)
        if ruling.verdict == "promote" and self.weight < self.stages_percent[-1]:
            self._blockers = self.stable.rollback_blockers(self.service)
            ruling = hold_while_blocked(ruling, self._blockers, seconds, limits.deadline_seconds)
        self.board.show(
            lambda: canary_board(
                self.release,
                self.stages_percent,
                self.weight,
                evidence,
                limits,
                ruling,
                seconds,
                forecast=self._forecast,
                engines=self._engines,
                probed=self._probed,
                before=self.stable.release,
            ),
            at_once=ruling.verdict != "hold",
        )
        return ruling

    def _note_loads(self, read: Mapping[str, Load | None]) -> None:
        for meter, replicas in zip(self._meters, (self.candidates, self.stable.replicas), strict=True):
            meter.take({replica.name: read[replica.name] for replica in replicas if replica.name in read})

    def _probe(self, evidence: Evidence, seconds: float) -> None:
        """Take in what came back, and send the next round where users will not have told enough in time."""
        while not self._answered.empty():
            self._is_probing = False
            self.probe_judge.take(self._answered.get().result(), seconds)
        service, limits = self.service, self.judge.limits
        missing = probes_missing(evidence, limits, seconds, self.probe_judge.probed(), service.probes_per_stage)
        if not missing or self._is_probing or seconds < self._next_round_at or not self.stable.replicas:
            return
        if not self._rounds:
            get_run_logger().info("%s %%: too few users come to judge by: probes are sent", self.weight)
        prompts = service.prompts_for(self.release.engine.kind)[:missing]
        asked = probe.submit(
            service.engine_client,
            prompts,
            self.candidates,
            self.stable.replicas,
            release=self.release.id,
            round_number=self._rounds,
            is_over=self._is_over.is_set,
        )
        asked.add_done_callback(self._answered.put)
        self._is_probing, self._rounds = True, self._rounds + 1
        self._next_round_at = seconds + seconds_between_rounds(limits, len(prompts), service.probes_per_stage)

    @property
    def _probed(self) -> Probed | None:
        """None where no probe was sent."""
        return self.probe_judge.probed() if self._rounds else None

    @property
    def _forecast(self) -> str:
        return forecast(
            self.judge.limits, self.weight / 100, self.requests_a_second, self.judge.edges_ms, self.release.engine.kind
        )

    @property
    def _engines(self) -> Engines:
        return Engines(*(meter.work() for meter in self._meters))
