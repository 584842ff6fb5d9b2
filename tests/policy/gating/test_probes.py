"""When golden prompts are put to candidate and stable, and what their answers show."""

from dataclasses import replace

import pytest

from blocks.ports.engine import Answer, Prompt
from blocks.ports.fleet import Replica
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.decide import rule
from flows.policy.gating.evidence import CellCount, Count, Evidence, Probed
from flows.policy.gating.probes import (
    Pair,
    ProbeJudge,
    is_too_thin,
    probes_missing,
    seconds_between_rounds,
    what_is_wrong,
)
from tests import limits
from tests.gating import said, subjects

LIMITS = limits.LIMITS.model_copy(update={"minimum_requests": 10, "minimum_seconds": 0, "deadline_seconds": 1000})
TEXT, JSON, TOOL = Prompt("Hello?", 32, "text"), Prompt("JSON!", 32, "json"), Prompt("Call it!", 32, "tool")
RIGHT = Answer(200, "A sentence.", first_token_ms=50, total_ms=100, is_whole=True)
MINE = Replica("chat-2-0", "chat", "2", "here", "127.0.0.1:2")
STABLE = Replica("chat-1-0", "chat", "1", "here", "127.0.0.1:1")
NOBODY = Evidence(weight=0.05, alpha=0.6)
SOME = replace(NOBODY, requests=60, counts={"failed": Count(of=60, counted=60)})
FEW = Evidence(
    weight=0.05,
    alpha=0.6,
    requests=10,
    counts={"failed": Count(of=10, counted=10), "TTFT over limit": Count(of=10, counted=10)},
)


def probed(pairs: int, mine: Answer = RIGHT, stables: Answer = RIGHT, prompt: Prompt = TEXT) -> Probed:
    judge = ProbeJudge(LIMITS, "green", alpha=0.1 * alpha_of_stage(0, 5), cells={})
    judge.take([Pair(prompt, MINE, mine, STABLE, stables)] * pairs, 10)
    return judge.probed()


@pytest.mark.parametrize(
    ("prompt", "answer", "words"),
    [
        (TEXT, RIGHT, ""),
        (TEXT, Answer(200, " \n"), "it is empty"),
        (TEXT, Answer(200, "", has_thought=True), ""),
        (JSON, Answer(200, '{"city": "Paris"}'), ""),
        (JSON, Answer(200, 'Here: {"city"'), "it is no JSON"),
        (TOOL, Answer(200, "42"), "no tool was called"),
        (TOOL, Answer(200, tool_arguments='{"answer": "42"}'), ""),
        (TOOL, Answer(200, tool_arguments='{"answer"'), "the tool was called with what is no JSON"),
    ],
)
def test_an_answer_has_to_be_what_was_asked_for(prompt: Prompt, answer: Answer, words: str) -> None:
    """Not empty, JSON, or a call of the tool; what is wrong is said."""
    assert what_is_wrong(prompt, answer) == words


def test_probes_are_sent_where_users_will_not_tell_in_time() -> None:
    """Not at the very beginning, not where the pace would do with some luck, and never more than are allowed."""
    assert not is_too_thin(NOBODY, LIMITS, 49)
    assert is_too_thin(NOBODY, LIMITS, 50)
    assert not is_too_thin(SOME, LIMITS, 50)
    assert probes_missing(SOME, LIMITS, 50, probed(0), 400) == 0
    assert probes_missing(NOBODY, LIMITS, 50, probed(0), 400) == 172
    assert probes_missing(NOBODY, LIMITS, 50, probed(0), 100) == 100
    assert probes_missing(NOBODY, LIMITS, 50, probed(100), 100) == 0
    assert probes_missing(NOBODY, LIMITS, 50, probed(0), 0) == 0


def test_bad_luck_that_users_cannot_make_up_for_in_time_asks_for_probes() -> None:
    """Nine hundred requests by the deadline are plenty without a failure, and with eight they are too few."""
    for hits, thin in ((0, False), (8, True)):
        count = Count(hits=hits, all_hits=hits, of=450, counted=450, counted_hits=hits)
        some = replace(NOBODY, requests=450, counts={"failed": count})
        assert is_too_thin(some, LIMITS, 500) == thin


def test_enough_probes_are_enough() -> None:
    """Good ones take all doubt of what is to be learned, and then no more are sent; each failure asks for more."""
    assert probes_missing(FEW, LIMITS, 500, probed(180), 1000) == 0
    assert probes_missing(FEW, LIMITS, 500, probed(50), 1000) == 112
    failed = ProbeJudge(LIMITS, "green", alpha=0.06, cells={})
    failed.take([Pair(TEXT, MINE, Answer(500), STABLE, RIGHT)] + [Pair(TEXT, MINE, RIGHT, STABLE, RIGHT)] * 180, 10)
    assert probes_missing(FEW, LIMITS, 500, failed.probed(), 1000) > 50


def test_probes_take_their_time() -> None:
    """All that a stage may have are spread over a third of its deadline."""
    assert seconds_between_rounds(LIMITS, 5, 400) == pytest.approx(1000 / 3 / 80)


def test_probes_stand_in_for_what_is_to_be_learned_but_not_for_users() -> None:
    """Ten users and 180 good probes pass a stage that needs ten; with nobody, any number of probes passes nothing."""
    assert rule(FEW, LIMITS, 500).verdict == "hold"
    passed = rule(FEW, LIMITS, 500, probed(180))
    assert passed.verdict == "promote"
    assert said(FEW, LIMITS, 500, probed(180)).endswith("of 180 probes 0 failed.")
    assert rule(FEW, LIMITS, 500, probed(50)).verdict == "hold"
    assert rule(NOBODY, LIMITS, 500, probed(5000)).verdict == "hold"
    ruling = rule(NOBODY, LIMITS, 1000, probed(5000))
    assert ruling.verdict == "roll back"
    words = said(NOBODY, LIMITS, 1000, probed(5000))
    assert "0 of the 10 requests of the candidate that a stage needs, and probes do not stand in for these" in words


@pytest.mark.parametrize(
    ("mine", "stables", "prompt", "words"),
    [
        (Answer(500), RIGHT, TEXT, "20 of 20 (100.0 %) requests failed"),
        (Answer(None), RIGHT, TEXT, "20 of 20 (100.0 %) requests failed"),
        (replace(RIGHT, is_whole=False), RIGHT, TEXT, "20 of 20 (100.0 %) requests failed"),
        (Answer(200, error_status=503), RIGHT, TEXT, "20 of 20 (100.0 %) requests failed"),
        (replace(RIGHT, text=""), RIGHT, TEXT, "20 of 20 answers to probes are wrong"),
        (replace(RIGHT, text="no JSON"), replace(RIGHT, text="{}"), JSON, "20 of 20 answers to probes are wrong"),
        (replace(RIGHT, text="A"), RIGHT, TEXT, "20 of 20 answers to probes are much shorter"),
        (
            replace(RIGHT, text="A sentence." * 4),
            RIGHT,
            TEXT,
            "20 of 20 answers to probes are much longer",
        ),
    ],
)
def test_harm_that_probes_show_takes_a_release_back(mine: Answer, stables: Answer, prompt: Prompt, words: str) -> None:
    """Failures, wrong answers and lengths that stable does not have; the words say that it was probes."""
    ruling = rule(FEW, LIMITS, 500, probed(20, mine, stables, prompt))
    assert ruling.verdict == "roll back"
    assert all(finding.by_probes for finding in ruling.findings)
    told = said(FEW, LIMITS, 500, probed(20, mine, stables, prompt))
    assert "probes" in told
    assert words in told
    assert rule(FEW, LIMITS, 500, probed(3, mine, stables, prompt)).verdict == "hold"


def test_one_probe_that_goes_wrong_by_chance_does_not_hold_a_stage() -> None:
    """Nobody would send more because of it: one wrong answer of the candidate's passes, and two wait."""
    for wrong, verdict in ((1, "promote"), (2, "hold")):
        judge = ProbeJudge(LIMITS, "green", alpha=0.1 * alpha_of_stage(0, 5), cells={})
        pairs = [Pair(TEXT, MINE, Answer(200, "", is_whole=True, first_token_ms=50), STABLE, RIGHT)] * wrong
        judge.take([*pairs, *[Pair(TEXT, MINE, RIGHT, STABLE, RIGHT)] * 180], 10)
        assert rule(FEW, LIMITS, 500, judge.probed()).verdict == verdict


def test_a_refusal_in_a_probes_body_is_a_refusal() -> None:
    """As under a status of its own: a prompt that is too long for both is no failure of the candidate's."""
    for refused in (Answer(400), Answer(200, error_status=400)):
        seen = probed(180, refused, refused).evidence
        assert (seen.count("failed").of, seen.count("failed").hits) == (0, 0)
        assert rule(FEW, LIMITS, 500, probed(180, refused, refused)).verdict == "hold"
        once = ProbeJudge(LIMITS, "green", alpha=0.06, cells={})
        once.take([Pair(TEXT, MINE, RIGHT, STABLE, RIGHT), Pair(TEXT, MINE, refused, STABLE, RIGHT)], 10)
        assert once.probed().evidence.count("refused").hits == 1


def test_what_stable_gets_wrong_as_well_is_no_harm() -> None:
    """A prompt that is beyond both says nothing; one that only stable gets wrong says nothing against the candidate."""
    empty = replace(RIGHT, text="")
    assert rule(FEW, LIMITS, 500, probed(180, empty, empty)).verdict == "promote"
    assert rule(FEW, LIMITS, 500, probed(180, RIGHT, empty)).verdict == "promote"


def test_a_candidate_that_is_slow_to_probes_is_taken_back() -> None:
    """Twice as slow as stable, whose times vary as times do."""
    judge = ProbeJudge(LIMITS, "green", alpha=0.06, cells={})
    for number in range(100):
        ms = 40 + 37 * number % 41
        pair = Pair(TEXT, MINE, replace(RIGHT, first_token_ms=2 * ms), STABLE, replace(RIGHT, first_token_ms=ms))
        judge.take([pair], 10)
    ruling = rule(FEW, LIMITS, 500, judge.probed())
    assert ruling.verdict == "roll back"
    assert subjects(ruling) == ["TTFT slower"]


def test_a_cell_that_only_probes_find_bad_is_held_back() -> None:
    """All failures are of one replica's cell: the others go on, and what was seen of it is forgotten."""
    others = replace(MINE, address="127.0.0.1:3")
    cells = {MINE.address: "a", others.address: "b"}
    judge = ProbeJudge(LIMITS, "green", alpha=0.06, cells=cells)
    bad, good = Pair(TEXT, MINE, Answer(500), STABLE, RIGHT), Pair(TEXT, others, RIGHT, STABLE, RIGHT)
    judge.take([bad, good] * 20, 10)
    ruling = rule(FEW, LIMITS, 500, judge.probed())
    assert (ruling.verdict, ruling.bad_cells) == ("hold", ("a",))
    judge.drop(ruling.bad_cells)
    assert judge.probed().evidence.cells == dict[str, CellCount]()
    assert rule(FEW, LIMITS, 500, judge.probed()).bad_cells == ()
