"""What engines did over a stage, from what they count since their start."""

from blocks.ports.engine import Load
from flows.policy.gating.engines import Meter, Work


def work(*readings: dict[str, Load | None]) -> Work:
    meter = Meter()
    for reading in readings:
        meter.take(reading)
    return meter.work()


def test_what_was_done_before_the_stage_is_not_counted() -> None:
    """The first reading is where the differences begin; a second engine adds to them."""
    before = Load(1, 0, prompt_tokens=1000, generated_tokens=100, timed_tokens=90, token_seconds=9, preemptions=3)
    after = Load(1, 0, prompt_tokens=1500, generated_tokens=150, timed_tokens=130, token_seconds=10, preemptions=3)
    assert work({"a": before}) == Work(replicas=1, most_waiting=0)
    done = work({"a": before, "b": before}, {"a": after, "b": before})
    assert (done.prompt_tokens, done.generated_tokens, done.preemptions) == (500, 50, 0)
    assert done.ms_per_token == 25


def test_an_engine_that_began_again_counts_from_zero() -> None:
    """One counter that fell tells it, and holds for those that happen to be higher than before."""
    before = Load(0, 0, prompt_tokens=1000, generated_tokens=10, preemptions=0)
    again = Load(0, 0, prompt_tokens=200, generated_tokens=30, preemptions=0)
    done = work({"a": before}, {"a": again})
    assert (done.prompt_tokens, done.generated_tokens, done.restarts) == (200, 30, 1)


def test_silence_is_no_data_and_loses_none() -> None:
    """A page that could not be read is told as silent, and what it missed comes with the next one."""
    first, last = Load(0, 0, generated_tokens=10), Load(0, 0, generated_tokens=40)
    assert work({"a": None}) == Work(replicas=1, silent=1)
    assert work({"a": first}, {"a": None}).silent == 1
    done = work({"a": first}, {"a": None}, {"a": last})
    assert (done.silent, done.generated_tokens) == (0, 30)


def test_what_an_engine_does_not_count_is_unknown() -> None:
    """No preemptions is not zero preemptions, and no token timed is no time of a token."""
    done = work({"a": Load(0, 0, generated_tokens=1)}, {"a": Load(0, 0, generated_tokens=1)})
    assert (done.preemptions, done.queue_ms, done.ms_per_token, done.fullest_kv_cache) == (None, None, None, None)
    assert done.generated_tokens == 0


def test_queues_and_caches_are_told_at_their_worst() -> None:
    """Queues of all engines together, the cache of the fullest one, and the wait of a request on average."""
    calm = Load(0, 0, queued_requests=5, queue_seconds=1, kv_cache=0.1)
    full = Load(2, 3, queued_requests=9, queue_seconds=3, kv_cache=0.9)
    done = work({"a": calm, "b": calm}, {"a": full, "b": full}, {"a": full, "b": calm})
    assert (done.most_waiting, done.fullest_kv_cache) == (6, 0.9)
    assert done.restarts == 1
    done = work({"a": calm}, {"a": full})
    assert done.queue_ms == 500
