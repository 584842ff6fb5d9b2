"""Foreign texts: whatever they hold, what is made of them is short, of one line, and without a secret."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocks
from blocks.cleaning import cleaned, mask_from_now_on, without_secrets
from blocks.errors import NoCapacity, Refused, Unavailable


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("no route to https://me:pa55word@hub.example/x", "no route to https://hub.example/x"),
        ("https://token@hub.example and HTTPS://a:b@c@hub.example", "https://hub.example and HTTPS://hub.example"),
        ("postgresql+asyncpg://me:pa55word@db/x", "postgresql+asyncpg://db/x"),
        ("GET https://cdn.example/a?X-Amz-Signature=abc&X=1 failed", "GET https://cdn.example/a?… failed"),
        (
            "Max retries exceeded with url: /c/b?sv=1&sig=abc%3D (Caused by x)",
            "Max retries exceeded with url: /c/b?… (Caused by x)",
        ),
        ("b'Authorization: Bearer abcdefgh12345678'", "b'Authorization: Bearer (a secret)'"),
        ("Proxy-Authorization: Basic bWU6cGE1NXdvcmQ=", "Proxy-Authorization: Basic (a secret)"),
        ("string to sign: sig=abc%3Ddefghij&se=1 no", "string to sign: sig (a secret)&se=1 no"),
        ("X-Amz-Security-Token: FwoGZXIvYXdzEB/x= no", "X-Amz-Security-Token (a secret) no"),
        ("the token hf_abcdefghijklmnopqrst is wrong", "the token hf (a secret) is wrong"),
        ("two\r\nlines\x1b[31m and\x00 a\tbell\x07", "two lines and a bell"),
        ("turned \u202etxt.exe", "turned txt.exe"),
        ("why? because a=b", "why? because a=b"),
        ("me@example.org stays", "me@example.org stays"),
    ],
)
def test_what_is_no_business_of_a_log_is_left_out(said: str, left: str) -> None:
    """Users and passwords in addresses, queries, tokens, and characters that write over what a log says."""
    assert cleaned(said) == left


def test_a_long_text_is_cut_and_says_so() -> None:
    """A page of HTML in place of an answer does not fill the log; nor does a megabyte take long."""
    assert cleaned("x" * 2_000_000, 10) == "xxxxxxxxxx… (2000000 characters in all)"
    assert cleaned("a." * 1_000_000, 10) == "a.a.a.a.a.… (2000000 characters in all)"
    assert cleaned(f"{'a' * 99}://me:pa55word@db") == f"{'a' * 99}://db"


def test_a_secret_is_masked_before_it_is_cut() -> None:
    """Half a secret is none the less one."""
    mask_from_now_on("correct-horse-battery")
    assert "horse" not in cleaned("x" * 490 + " correct-horse-battery")


def test_a_secret_that_a_block_knows_stands_in_no_error() -> None:
    """Nor as it stands in an address; an error keeps its lines, and whoever pickles it gets the same one."""
    mask_from_now_on("s3cr/et+key==")
    for error in (
        Refused("no: s3cr/et+key==\nand s3cr%2Fet%2Bkey%3D%3D"),
        Unavailable("no: s3cr/et+key==\nand s3cr%2Fet%2Bkey%3D%3D", after_seconds=3),
    ):
        assert str(error) == "no: (a secret)\nand (a secret)"
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, as Prefect does it
        assert (str(again), vars(again)) == (str(error), vars(error))
    said = NoCapacity("aws", "key s3cr/et+key== is refused")
    assert (said.reason, str(said)) == ("key (a secret) is refused", "aws said no: key (a secret) is refused")


def test_short_words_are_no_secrets() -> None:
    """Masked, they would make other words unreadable."""
    mask_from_now_on("key")
    assert without_secrets("a key is missing") == "a key is missing"


def test_each_line_of_a_secret_is_one() -> None:
    """A private key has several, and is quoted in one, or with its line breaks written out."""
    mask_from_now_on("-----BEGIN PRIVATE KEY-----\nMIIEvAIBADAN\nBgkqhkiG9w0B\n-----END PRIVATE KEY-----\n")
    for said in ("MIIEvAIBADAN\nBgkqhkiG9w0B", "MIIEvAIBADAN BgkqhkiG9w0B", r"MIIEvAIBADAN\nBgkqhkiG9w0B"):
        assert not {"MIIEvAIBADAN", "BgkqhkiG9w0B"} & set(without_secrets(said).replace(r"\n", " ").split())


def test_a_known_password_leaves_no_user_behind_in_an_address() -> None:
    mask_from_now_on("pa55word")
    assert without_secrets("no route to https://me:pa55word@hub.example/x") == "no route to https://hub.example/x"


HOME = Path(blocks.__path__[0])
EDGES = sorted(path.relative_to(HOME).as_posix() for path in HOME.rglob("*.py"))
"""All of the edge: each block stands before a stranger who may quote a signed address, a key, or what was sent."""


@pytest.mark.parametrize("edge", EDGES)
def test_no_strangers_exception_goes_on_behind_ours(edge: str) -> None:
    """Prefect logs an error with its cause, whose text nobody has cleaned: what is needed of it stands in ours."""
    assert list(lines_that_keep_a_cause(ast.parse((HOME / edge).read_text()))) == []


def lines_that_keep_a_cause(tree: ast.AST) -> Iterator[int]:
    """A `raise … from error`; ruff's B904 refuses one in a handler that says nothing of its cause."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(cause=None | ast.Constant(value=None)):
                continue
            case ast.Raise():
                yield node.lineno
