"""What does a service promise its users, and how sure does a ruling have to be?"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Limits(BaseModel):
    """What a service promises its users, and how sure a ruling has to be; its fields are those of the Service block."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    error_percent: float = Field(gt=0, lt=100)
    first_token_p95_ms: float | None = Field(gt=0)
    """None where the service promises nothing, as where nobody streams."""
    token_p95_ms: float | None = Field(default=None, gt=0)
    """None where TPOT is not judged at all, as where a release changes how many tokens come in one event."""
    total_p95_ms: float | None = Field(default=None, gt=0)
    """Of whole answers of models that stream none: embedding and rerank; None where the service promises nothing."""
    slower_than_stable: float = Field(ge=1)
    """Times stable's latency that the candidate's may be: a ratio below this is excused."""
    first_token_margin_ms: float = Field(ge=0)
    """A TTFT that exceeds stable's by less than this is excused."""
    token_margin_ms: float = Field(default=0.0, ge=0)
    """A TPOT that exceeds stable's by less than this is excused; older ledgers know of no such margin."""
    total_margin_ms: float = Field(default=0.0, ge=0)
    """A total time that exceeds stable's by less than this is excused; older ledgers know of no such margin."""
    more_than_stable: float = Field(ge=1)
    """Times stable's rate of failures, refusals and departures: a ratio below this is excused."""
    error_margin_percent: float = Field(ge=0, lt=100)
    """A rate of failures, refusals or departures under this is excused, however small stable's is."""
    false_alarm_percent: float = Field(gt=0, lt=100)
    """Alpha of a release: of those that keep all limits, so many may be rolled back by bad luck."""
    missed_harm_percent: float = Field(gt=0, lt=100)
    """Beta of a stage: of those in which a limit is broken twice over, so many may be passed by good luck."""
    minimum_requests: int = Field(ge=1)
    """A stage with fewer of the candidate's requests than this never passes."""
    warm_up_seconds: float = Field(ge=0)
    """Latencies of requests that came before this are not judged: caches are cold. Failures are."""
    minimum_seconds: float = Field(ge=0)
    deadline_seconds: float = Field(gt=0)
    """A stage that has not passed by then is rolled back."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.error_margin_percent > self.error_percent:
            raise ValueError(
                f"error_margin_percent {self.error_margin_percent:g} would excuse what error_percent "
                f"{self.error_percent:g} forbids; lower the margin or raise the limit"
            )
        if self.warm_up_seconds >= self.deadline_seconds:
            raise ValueError(
                f"a stage that warms up for {self.warm_up_seconds:g} s has seen nothing by its deadline of "
                f"{self.deadline_seconds:g} s; lower warm_up_seconds or raise stage_deadline_seconds"
            )
        return self

    def __hash__(self) -> int:
        """Of its values: what is made of limits is kept by them."""
        return hash(tuple(vars(self).values()))

    @property
    def beta(self) -> float:
        return self.missed_harm_percent / 100
