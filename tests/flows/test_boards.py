"""What the boards show."""

import re
import string
from base64 import b64decode
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, Replica
from blocks.ports.hub import Model
from blocks.ports.store import MultipartUpload, StoredObject
from flows.boards.boards import (
    canary_board,
    collection_table,
    decision_table,
    mirror_report,
    release_report,
    uploads_table,
    verification_table,
    waiting_board,
)
from flows.boards.markdown import escaped
from flows.policy.gating.decide import rule
from flows.policy.gating.engines import Engines, Work
from flows.policy.gating.evidence import Count, Evidence, Probed
from flows.policy.gating.judge import Judge
from flows.policy.mirrors.collect import Mirror, Verdict
from flows.policy.mirrors.mirror import Selection
from flows.policy.mirrors.verify import Finding
from flows.policy.releases.ledger import Release, Stage
from flows.policy.releases.scale import Decision
from flows.transfer.transfer import Target
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
    )


def test_the_canary_board_shows_the_evidence_as_a_picture_and_in_numbers() -> None:
    """An image within the text, that is well-formed; a bar for each gate; and what the users of each slot saw."""
    shown = board(4000)
    found = re.search(r"\(data:image/svg\+xml;base64,([^)]+)\)", shown)
    assert found
    picture = ET.fromstring(b64decode(found[1]))  # noqa: S314 - our own picture
    assert {element.tag.rpartition("}")[2] for element in picture} >= {"polygon", "polyline", "line", "text"}
    assert "the limit is 1 %" in shown
    assert re.search(r"\| TTFT slower \| `█*░*` \d+ % \|  \| time to first token is \d+ ms at", shown)
    assert re.search(r"\| TPOT slower \| `█*░*` \d+ % \|  \| time per output token is \d+\.\d ms at", shown)
    assert re.search(r"\| requests \| \d{3} \(\d\.\d %\) \| 3\d{3} \|", shown)
    assert re.search(r"\| tokens \| \d{5} \(\d\.\d %\) \| 1\d{5} \|", shown)


def test_at_all_traffic_a_service_that_promises_no_times_has_a_board() -> None:
    """No gate is shown of what is not promised, and stable has nothing."""
    limits = LIMITS.model_copy(update={"first_token_p95_ms": None, "token_p95_ms": None})
    judge = Judge(limits, "green", weight=1.0)
    for outcome, _ in zip(users(1, rate=0.01, share=1.0), range(50), strict=False):
        judge.take([outcome], 10)
    evidence = judge.evidence()
    ruling = rule(evidence, limits, 10)
    shown = canary_board(
        RELEASE, (5, 100), 100, evidence, limits, ruling, 10, forecast=FORECAST, engines=ENGINES, probed=None
    )
    assert "over limit" not in shown
    assert re.search(r"\| requests \| \d+ \(100\.0 %\) \| 0 \|", shown)


def test_before_the_first_request_there_is_no_picture() -> None:
    """And no division by nothing."""
    assert "data:image" not in board(0)


def test_the_canary_board_shows_what_engines_say_of_themselves() -> None:
    """Of each slot; what an engine does not count is no data, and not zero."""
    shown = board(1)
    assert "| candidate | 1 of 2 | no data | 1,234 | 12.3 | no data | no data | 50% | no data | 0 |" in shown
    assert f"This one takes {FORECAST}." in shown
    assert "| stable | 0 of 0 | no data |" in shown


def test_the_canary_board_shows_probes_apart() -> None:
    """How many were sent, and how near what they show is to a roll-back."""
    assert "No probes were sent." in board(1)
    probed = Probed(
        Evidence(0.5, 0.03, requests=40, stable_requests=41, counts={"failed": Count(3, 4, 40, 40, 3, peak=1.0)}),
        {"wrong": Count(2, 3, 40, peak=5.0)},
    )
    shown = board(1, probed)
    assert "**Probes**: 40 to the candidate and 41 to stable." in shown
    assert "3 of 40 (7.5 %) requests failed, and 1 of stable's; the limit is 1 %" in shown
    assert "2 of 40 answers to probes are wrong where the other slot's is right, and 1 of stable's" in shown


HOSTILE = (
    "a|b`c*_d_![x](https://evil.example/x.png)<img src=x>[l](javascript:x)\n# head\n| --- |\r\n~~s~~ "
    "www.evil.example @x &lt; $x$"
)


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


def test_names_of_files_are_escaped_wherever_they_are_shown() -> None:
    """Reports of mirrors, of what was verified, and of what nobody needs: no name makes a column, or a link."""
    target = Target(HOSTILE, FakeStore(), "models/", error=Refused(HOSTILE))
    wanted = Selection((), ((HOSTILE, "ignored"),), (HOSTILE,))
    upload = MultipartUpload(HOSTILE, "1", 0)
    mirror = Mirror(HOSTILE, (StoredObject(HOSTILE, 1),), None)
    tables = (
        (mirror_report(Model(HOSTILE, "c", (), None), wanted, [target], seconds=1, retries=0), 5),
        (verification_table([Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]), 1),
        (uploads_table([(HOSTILE, upload)], [upload], now=1, dry_run=True), 1),
        (collection_table(HOSTILE, [Verdict(mirror, delete=True, reason=HOSTILE)], [upload], dry_run=True), 4),
    )
    for table, times in tables:
        assert table.count(escaped(HOSTILE)) >= times
        assert "](" not in table
        assert not re.search(r"(?<!\\)<", table)
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_words_of_clouds_and_engines_mean_nothing_on_the_boards_of_fleet_and_night() -> None:
    """An engine's last words are in reasons, and a cell is called as its provider likes."""
    words = "no |\n# ![x](https://example.org/x)"
    replica = Replica("chat-1-0", "chat", "chat-1", words, "127.0.0.1:1")
    stage = Stage(share_percent=5, verdict="hold", reason=words, requests=1, seconds=1)
    ended = RELEASE.model_copy(update={"stages": (stage,), "closing_reason": words})
    for shown in (
        decision_table([Decision(replica, stop=True, reason=words)], dry_run=True),
        waiting_board(ended, (5, 100), 5, words),
        release_report(ended, "http://127.0.0.1:1/v1"),
    ):
        assert escaped(words) in shown
        assert words not in shown
        assert "![x]" not in shown
