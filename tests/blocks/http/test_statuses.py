"""What an HTTP status means, whoever answers."""

from blocks.errors import Refused, Unavailable
from blocks.http.statuses import may_pass, translation


def test_the_status_says_what_may_pass() -> None:
    """A server's own faults pass, but for those that say that it cannot, or has no room; a request's own do not."""
    assert {status for status in range(100, 600) if may_pass(status)} == {408, 425, 429, *range(500, 600)} - {
        501,
        505,
        507,
    }


def test_an_error_names_thing_status_code_and_next_step() -> None:
    """And a code can know better what helps, or that what looks final passes."""
    assert str(translation("s3://b did not write k", 413, {})) == (
        "s3://b did not write k: 413; raise what the store, or a proxy before it, takes in one request"
    )
    refused = translation("it", 400, {}, words="Code", step="do this")
    assert (type(refused), str(refused)) == (Refused, "it: 400 Code; do this")
    passing = translation("it", 400, {"retry-after": "3"}, words="Code", passes=True)
    assert isinstance(passing, Unavailable)
    assert passing.after_seconds == 3
    assert str(translation("it", 418, {})) == "it: 418; correct the settings"
