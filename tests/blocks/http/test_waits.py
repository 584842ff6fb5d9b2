"""How long an answer asks to be left alone."""

from datetime import UTC, datetime

import pytest

from blocks.http.waits import told_to_wait

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:25 GMT"}, 25),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:25 -0000"}, 25),
        ({"retry-after": "Sun, 29 Nov 2026 13:00:25 +0100"}, 25),
        ({"retry-after": "Sun, 29 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Sun, 29 Nov 2026 12:20:25 GMT", "date": "Sun, 29 Nov 2026 12:20:00 GMT"}, 25),
        ({"retry-after": "Sun, 29 Nov 2026 11:40:25 GMT", "date": "Sun, 29 Nov 2026 11:40:00 GMT"}, 25),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:25 GMT", "date": "today"}, 25),
        ({"retry-after": "9" * 400}, 999_999_999),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "Sun, 99 Nov 99999 12:00:25 GMT"}, None),
        ({"ratelimit": '"api";r=0;t=25'}, 25),
        ({"ratelimit": '"api"; r = 0 ; t = 25'}, 25),
        ({"ratelimit": '"api";r=0;t=25, "pages";r=9;t=200'}, 25),
        ({"ratelimit": '"api";r=3;t=25, "pages";r=9;t=200'}, 200),
        ({"ratelimit": "limit=100, remaining=0, reset=25"}, 25),
        ({"ratelimit": '"api";r=0'}, None),
        ({"ratelimit": '"api";rt=5;t=x'}, None),
        ({"ratelimit-reset": "25"}, 25),
        ({"ratelimit-reset": "9" * 30}, None),
        ({"retry-after": "7", "ratelimit": '"api";r=0;t=25'}, 7),
        ({"retry-after": "soon", "ratelimit": '"api";r=0;t=25'}, 25),
    ],
)
def test_what_an_answer_says_of_waiting(headers: dict[str, str], seconds: float | None) -> None:
    """In seconds, as a date by the server's clock, or by the quota used up; what cannot be read says nothing."""
    assert told_to_wait(headers, NOW) == seconds
