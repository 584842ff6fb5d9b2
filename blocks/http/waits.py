"""How long a server wants to be left alone, as its answer says it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_DIGITS = 9
_LEFT = re.compile(r"(?:^|[;,\s])(?:r|remaining)\s*=\s*(\d{1,9})\b")
_UNTIL = re.compile(r"(?:^|[;,\s])(?:t|reset)\s*=\s*(\d{1,9})\b")


def told_to_wait(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds; None where the answer says nothing that can be read. Names of `headers` are in lower case.

    Of `Retry-After`, in seconds or as a date, which is by the clock that the answer's own `Date` is by; else of
    `RateLimit` (`"api";r=0;t=25`) or `RateLimit-Reset`, as of
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/.
    """
    after = headers.get("retry-after", "").strip()
    if after.isascii() and after.isdigit():
        return float(after[-MOST_DIGITS:] if len(after) <= MOST_DIGITS else "9" * MOST_DIGITS)
    if after and (until := _date(after)) is not None:
        return max(0.0, (until - (_date(headers.get("date", "")) or now)).total_seconds())
    quotas = [
        (int(left[1]) if (left := _LEFT.search(quota)) else 0, float(until[1]))
        for quota in headers.get("ratelimit", "").split(",")
        if (until := _UNTIL.search(quota))
    ]
    if quotas:
        # Of several quotas, those that are used up are why.
        return max((until for left, until in quotas if left == 0), default=max(until for _, until in quotas))
    reset = headers.get("ratelimit-reset", "").strip()
    return float(reset) if reset.isascii() and reset.isdigit() and len(reset) <= MOST_DIGITS else None


def _date(written: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(written)
    except (ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
