"""What the boards show."""

import json
import re
import string
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from xml.etree import ElementTree as ET

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, Replica
from blocks.ports.hub import Model
from blocks.ports.market import Stock
from blocks.ports.store import MultipartUpload, StoredObject
from flows.boards.canary import canary_board, waiting_board
from flows.boards.collect import mirrors_table, uploads_table
from flows.boards.markdown import Marked, escaped, link, table
from flows.boards.mirror import mirror_report
from flows.boards.numbers import count_of, dollars, milliseconds, percent, seconds, size, times
from flows.boards.placement import offers_table, placement_board, plan_board
from flows.boards.release import release_report
from flows.boards.replicas import decisions_table
from flows.boards.shown import COLUMN_CHARACTERS, PADDING_CHARACTERS, Page, Table
from flows.boards.stages import approval_question
from flows.boards.verify import findings_table
from flows.policy.gating.decide import rule
from flows.policy.gating.engines import Engines, Work
from flows.policy.gating.evidence import Count, Evidence, Probed
from flows.policy.gating.judge import Judge
from flows.policy.mirrors.collect import Mirror, Verdict
from flows.policy.mirrors.mirror import Selection
from flows.policy.mirrors.verify import Finding
from flows.policy.placement.plan import Considered, Placement
from flows.policy.releases.ledger import Release, Stage
from flows.policy.releases.scale import Decision
from flows.tasks.fleet import Started
from flows.transfer.transfer import Target
from tests.fakes.fleet import OFFER
from tests.fakes.store import FakeStore
from tests.policy.gating.test_judge import LIMITS, users

RELEASE = Release(
    id="chat-1",
    service="chat",
    repo="maker/model",
    commit="c0ffee",
    engine=EngineSettings(2048, 4),
    slot="green",
    state="in progress",
    run_id="run",
    opened_at=datetime(2026, 1, 1, tzinfo=UTC),
)
ENGINES = Engines(Work(replicas=2, silent=1, generated_tokens=1234, ms_per_token=12.34, fullest_kv_cache=0.5), Work())
FORECAST = "about 200 requests of the candidate if all goes well"
HOSTILE = (
    "a|b`c*_d_![x](https://evil.example/x.png)<img src=x>[l](javascript:x)\n# head\n| --- |\r\n~~s~~ "
    "www.evil.example @x &lt; $x$"
)
NEEDS = (HOSTILE,)


def board(requests: int, probed: Probed | None = None) -> str:
    judge = Judge(LIMITS, "green", weight=0.05, alpha=0.6)
    for outcome, _ in zip(users(1, rate=0.01), range(requests), strict=False):
        judge.take([outcome], 10)
    evidence = judge.evidence()
    return canary_board(
        RELEASE,
        (5, 100),
        5,
        evidence,
        LIMITS,
        rule(evidence, LIMITS, 10),
        10,
        forecast=FORECAST,
        engines=ENGINES,
        probed=probed,
    ).markdown


def test_the_canary_board_begins_with_what_was_done_and_what_users_met() -> None:
    """Who was woken up reads the ruling, then both slots' users side by side, and evidence only after that."""
    shown = unescaped(board(4000))
    title, _, ruling, *_ = shown.splitlines()
    assert title == "# Canary of chat-1: 5 % of traffic"
    assert re.match(r"\*\*(Held|Passed|Rolled back) at 5 %: ", ruling)
    assert shown.index("## What users met") < shown.index("## Gates") < shown.index("## Engines")
    assert "|  | candidate | stable | beside stable |" in shown
    assert re.search(r"\| requests \| \d{3} \| 3,\d{3} \| \d\.\d % of both \|", shown)
    assert re.search(r"\| output tokens \| \d+,\d{3} \| \d{3},\d{3} \| \d\.\d % of both \|", shown)
    assert re.search(r"\| users who met a failure \| \d+ \(\d\.\d %\) \| \d+ \(\d\.\d %\) \| [\d.]+ times \|", shown)
    assert re.search(r"\| time to first token, median \| [\d.]+ ms \| [\d.]+ ms \| [\d.]+ times \|", shown)
    assert re.search(r"\| time per output token, p95 \| [\d.]+ ms \| [\d.]+ ms \| [\d.]+ times \|", shown)


def test_the_canary_board_shows_the_evidence_as_a_picture_and_as_bars() -> None:
    """An image within the text, that is well-formed; a bar for each gate, and its words under the table."""
    shown = board(4000)
    found = re.search(r"\(data:image/svg\+xml;base64,([^)]+)\)", shown)
    assert found
    picture = ET.fromstring(b64decode(found[1]))  # noqa: S314 - our own picture
    assert {element.tag.rpartition("}")[2] for element in picture} >= {"polygon", "polyline", "line", "text"}
    assert re.search(r"\| failed \| `█*░*` \d+ % \| `█*░*` \d+ % \|", shown)
    assert re.search(r"^- \*\*failed\*\*: .*the limit is 1 %", shown, re.MULTILINE)
    assert f"takes {FORECAST}." in shown


def test_at_all_traffic_a_service_that_promises_no_times_has_a_board() -> None:
    """Stable has nothing, and no time is compared with none."""
    limits = LIMITS.model_copy(update={"first_token_p95_ms": None, "token_p95_ms": None})
    judge = Judge(limits, "green", weight=1.0)
    for outcome, _ in zip(users(1, rate=0.01, share=1.0), range(50), strict=False):
        judge.take([outcome], 10)
    evidence = judge.evidence()
    ruling = rule(evidence, limits, 10)
    shown = canary_board(
        RELEASE, (5, 100), 100, evidence, limits, ruling, 10, forecast=FORECAST, engines=ENGINES, probed=None
    ).markdown
    shown = unescaped(shown)
    assert re.search(r"\| requests \| \d+ \| 0 \| 100\.0 % of both \|", shown)
    assert re.search(r"\| time to first token, median \| [\d.]+ ms \| no data \|  \|", shown)


@pytest.mark.parametrize("requests", [0, 1])
def test_before_there_is_a_line_to_draw_there_is_no_picture(requests: int) -> None:
    """And no division by nothing."""
    assert "data:image" not in board(requests)


def test_the_canary_board_shows_what_engines_say_of_themselves() -> None:
    """Of each slot; what an engine does not count is no data, and not zero."""
    shown = unescaped(board(1))
    assert "| replicas that say so | 1 of 2 | 0 of 0 |" in shown
    assert "| output tokens | 1,234 | no data |" in shown
    assert "| time per output token, mean | 12.3 ms | no data |" in shown
    assert "| KV cache at its fullest | 50 % | no data |" in shown


def test_the_canary_board_shows_probes_apart() -> None:
    """How many were sent, and how near what they show is to a roll-back."""
    assert "No probes were sent." in board(1)
    probed = Probed(
        Evidence(0.5, 0.03, requests=40, stable_requests=41, counts={"failed": Count(3, 4, 40, 40, 3, peak=1.0)}),
        {"wrong": Count(2, 3, 40, peak=5.0)},
    )
    shown = board(1, probed)
    assert "40 were sent to the candidate, and 41 to stable." in shown
    assert re.search(r"\| wrong \| `█+░*` \d+ % \|", shown)
    assert "**wrong**: 2 of 40 answers to probes" in shown


def test_a_stage_that_waits_says_for_what() -> None:
    """In the first sentence."""
    shown = waiting_board(RELEASE, (5, 100), 5, "a server is down").markdown
    assert "**Waiting before 5 % of traffic**: stable could not take its traffic back now: a server is down." in shown


def test_a_person_is_asked_with_what_the_release_has_shown() -> None:
    """Nothing is a finding too."""
    assert "Give chat-1 100 % of the traffic?" in unescaped(approval_question(HELD, 100))
    assert "| 5 % | holding | 1 | 1 s |" in unescaped(approval_question(HELD, 100))
    assert "No stage has been held yet." in approval_question(RELEASE, 5)


def test_a_report_says_first_how_it_stands_and_why() -> None:
    """Then its stages, with their reasons under the table."""
    stage = Stage(share_percent=5, verdict="roll back", reason="3 of 20 failed", requests=20, seconds=700)
    ended = RELEASE.model_copy(update={"state": "rolled back", "stages": (stage,), "closing_reason": "at 5 %: bad"})
    shown = unescaped(release_report(ended, "https://llm.example.org/v1").markdown)
    assert shown.splitlines()[2] == "**Users keep what they had**: at 5 %: bad"
    assert "| 5 % | rolled back | 20 | 12 min |" in shown
    assert "- **5 %**: 3 of 20 failed" in shown
    assert "<https://llm.example.org/v1>" in shown


def unescaped(markdown: str) -> str:
    """What a reader sees: what is behind a backslash means nothing else."""
    return re.sub(rf"\\([{re.escape(string.punctuation)}])", r"\1", markdown)


def test_what_others_wrote_is_shown_as_it_is() -> None:
    """In one line, and every sign that means something to a renderer behind a backslash."""
    shown = escaped(HOSTILE)
    assert unescaped(shown) == " ".join(HOSTILE.split())
    assert not re.search(r"(?<!\\)[|`*_!\[\]()<>#~@&$:]", shown)
    assert "www\\.evil" in shown
    assert escaped("model-00001-of-00002.safetensors") == "model-00001-of-00002.safetensors"
    assert [escaped(words) for words in ("- a", "12. a", "a\u202e\0b")] == ["\\- a", "12\\. a", "a\ufffd\ufffdb"]
    assert len(escaped("x" * 10**6)) < 10**4


def test_a_table_escapes_every_cell_but_our_own_markdown() -> None:
    """Whatever is in a cell, the row has as many columns as the head; without rows there is no table."""
    shown = table(("what", "number"), [(HOSTILE, 1), (Marked("**ours**"), 2)])
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in shown.splitlines()} == {3}
    assert "| **ours** | 2 |" in shown
    assert "| --- | ---: |" in shown
    assert table(("what",), []) == ""


def test_an_address_that_could_end_its_link_is_no_link() -> None:
    """Then it is words."""
    assert link("https://llm.example.org/v1") == "<https://llm.example.org/v1>"
    assert link("https://x> <img src=x>") == escaped("https://x> <img src=x>")


HELD = RELEASE.model_copy(
    update={"stages": (Stage(share_percent=5, verdict="hold", reason=HOSTILE, requests=1, seconds=1),)}
)
PAGES = (
    Page("", approval_question(HELD, 100)),
    release_report(RELEASE.model_copy(update={"closing_reason": HOSTILE}), HOSTILE),
    waiting_board(HELD, (5, 100), 5, HOSTILE),
    mirror_report(
        Model(HOSTILE, HOSTILE, (), None),
        Selection((), ((HOSTILE, HOSTILE),), (HOSTILE,)),
        [Target(HOSTILE, FakeStore(), "models/", error=Refused(HOSTILE))],
        took_seconds=1,
        retries=0,
    ),
    placement_board(
        RELEASE,
        2,
        NEEDS,
        [Started(Replica(HOSTILE, "chat", "chat-1", HOSTILE, HOSTILE), 1, was_running=False)],
        {replace(OFFER, cell=HOSTILE): HOSTILE},
    ),
    plan_board(
        HOSTILE,
        2,
        NEEDS,
        Placement(
            (), (Considered(replace(OFFER, cell=HOSTILE), Stock("free", 0, 1, HOSTILE), 1, 1, 1, 1, HOSTILE),), 1.0
        ),
    ),
)
UPLOAD = MultipartUpload(HOSTILE, "1", 0)
TABLES = (
    findings_table([Finding(HOSTILE, HOSTILE, HOSTILE, "else")]),
    uploads_table([(HOSTILE, UPLOAD)], [UPLOAD], now=1, dry_run=True),
    mirrors_table(
        HOSTILE,
        [Verdict(Mirror(HOSTILE, (StoredObject(HOSTILE, 1),), None), delete=True, reason=HOSTILE)],
        [UPLOAD],
        dry_run=True,
    ),
    decisions_table(
        [Decision(Replica(HOSTILE, "chat", "chat-1", HOSTILE, ""), stop=True, reason=HOSTILE)], dry_run=True
    ),
    offers_table(
        Placement(
            (), (Considered(replace(OFFER, cell=HOSTILE), Stock("free", 0, 1, HOSTILE), 1, None, inf, 0, HOSTILE),), 0
        )
    ),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.markdown[:20])
def test_nothing_that_others_wrote_means_anything_on_a_page(page: Page) -> None:
    """Names, reasons and log tails: no link, no picture, no tag, no line and no column that is not ours."""
    for text in (page.markdown, page.description):
        assert escaped(HOSTILE) in text or text is page.description
        assert "![x]" not in text
        assert not re.search(r"(?<!\\)<(?!https?://[\w./:-]+>)", text)
        assert not re.search(r"^# head|^\| --- \|$", text, re.MULTILINE)
    for rows in re.findall(r"(?:^\|.*\n?)+", page.markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}) == 1


@pytest.mark.parametrize("shown", TABLES, ids=lambda shown: next(iter(shown.rows[0])))
def test_nothing_that_others_wrote_means_anything_in_a_table(shown: Table) -> None:
    """The UI takes cells for markdown; and none of its columns is cut, for it breaks no line by itself."""
    rows = json.loads(shown.data)
    for row in rows:
        lines = {name: str(cell).split("\n") for name, cell in row.items()}
        for line in (line for cell in lines.values() for line in cell):
            assert not re.search(r"(?<!\\)[|`*_!\[\]()<>#~@&]", line)
        widest = sum(max(len(name), *(len(unescaped(line)) for line in cell)) for name, cell in lines.items())
        assert widest <= COLUMN_CHARACTERS - PADDING_CHARACTERS * max(0, len(row) - 4)
    assert "![x]" not in shown.description
    words = " ".join(" ".join(str(cell) for cell in row.values()) for row in rows)
    assert "evil" in words.replace("\n", "")


def test_what_goes_comes_first() -> None:
    """And the description says what the rows come to."""
    stay, go = (Decision(Replica(name, "chat", "chat-1", "cell", ""), stop=name == "b", reason="why") for name in "ab")
    shown = decisions_table([stay, go], dry_run=True)
    assert [row["replica"] for row in shown.rows] == ["b", "a"]
    assert shown.description == "1 of 2 replicas are stopped (dry run: nothing was stopped)"


def test_a_long_cell_of_a_table_ends() -> None:
    """A page of one log tail would hide the other rows; numbers stay numbers."""
    rows = json.loads(Table("", [{"what": "word " * 10_000, "count": 3}]).data)
    assert len(rows[0]["what"]) < 1000
    assert rows[0]["count"] == 3


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (milliseconds(None), "no data"),
        (milliseconds(9.54), "9.5 ms"),
        (milliseconds(310.4), "310 ms"),
        (milliseconds(11_600), "11.6 s"),
        (seconds(62), "62 s"),
        (seconds(1245), "21 min"),
        (times(0.974), "0.97 times"),
        (times(37.4), "37 times"),
        (times(None), "no data"),
        (percent(0.5), "50 %"),
        (percent(None), "no data"),
        (count_of(2, 0), "2"),
        (count_of(1234, 2468), "1,234 (50.0 %)"),
        (size(1_500_000), "1.5 MB"),
        (size(141e9), "141.0 GB"),
        (dollars(None), "no price"),
        (dollars(1234.5), "$1,234.50"),
    ],
)
def test_numbers_are_read_by_people(shown: str, words: str) -> None:
    """Each with its unit; no data is no zero."""
    assert shown == words
