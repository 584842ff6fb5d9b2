"""Numbers as people read them; no data is "no data", and never zero."""

NO_DATA = "no data"
MS_A_SECOND = 1000
SECONDS_A_MINUTE = 60
MINUTES_FROM_SECONDS = 600
FINE_BELOW_MS = 100
FEW_BELOW = 10
GB_FROM_BYTES = 1e9


def milliseconds(ms: float | None) -> str:
    """With about three digits: 9.5 ms, 310 ms, 11.6 s."""
    if ms is None:
        return NO_DATA
    if ms >= MS_A_SECOND:
        return f"{ms / MS_A_SECOND:.1f} s"
    return f"{ms:.1f} ms" if ms < FINE_BELOW_MS else f"{ms:.0f} ms"


def seconds(count: float) -> str:
    """Minutes where they are many."""
    return f"{count / SECONDS_A_MINUTE:.0f} min" if count >= MINUTES_FROM_SECONDS else f"{count:.0f} s"


def times(ratio: float | None) -> str:
    """How many times as much: 0.97 times, 37 times."""
    if ratio is None:
        return NO_DATA
    return f"{ratio:.2f} times" if ratio < FEW_BELOW else f"{ratio:,.0f} times"


def count(number: float | None) -> str:
    return NO_DATA if number is None else f"{number:,.0f}"


def percent(part: float | None, digits: int = 0) -> str:
    """Of a part from 0 to 1."""
    return NO_DATA if part is None else f"{100 * part:.{digits}f} %"


def count_of(part: int, whole: int) -> str:
    """So many, and what part of the whole that is."""
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def size(count_bytes: float) -> str:
    """In millions or billions of bytes, as providers bill them."""
    return f"{count_bytes / 1e9:,.1f} GB" if count_bytes >= GB_FROM_BYTES else f"{count_bytes / 1e6:,.1f} MB"


def dollars(amount: float | None) -> str:
    return "no price" if amount is None else f"${amount:,.2f}"
