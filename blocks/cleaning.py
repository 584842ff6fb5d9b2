"""What strangers say, made fit for an error text, a log line and a manifest: one short line, and no secret.

A secret is masked wherever it stands, for blocks tell it to this room when they are made: whatever a library puts into
an exception, no text of ours repeats it.
"""

import re
from urllib.parse import quote, quote_plus

LONGEST_CHARACTERS = 500
READ_AT_MOST_CHARACTERS = 64 << 10
SHORTEST_SECRET = 8
"""What is shorter would mask words that are no secret."""
MASK = "(a secret)"

_USERINFO = re.compile(r"(?i)([a-z][a-z0-9+.-]{0,30}://)[^\s/?#\"'<>]*@")
_QUERY = re.compile(r"\?[\w.~%+-]+=[^\s\"'<>)\]]*")
"""All of it: signed addresses are known by no list of names."""
_TOKENS = re.compile(
    r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}|\b(hf)_[a-z0-9]{16,}"
    r"|\b(sig|signature|x-(?:amz|goog)-(?:signature|credential|security-token)) *[=:] *[\w.~+/=%-]{8,}"
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What terminals are told by."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but the ends of lines and tabs, with those that turn the direction of writing."""
_BLANKS = re.compile(r"\s+")

_secrets: set[str] = set()


def mask_from_now_on(secret: str) -> None:
    """Have no text of ours hold it, as it stands or as it stands in an address; what is short is left alone.

    Of one with several lines, as a private key is, each line is a secret: nobody quotes it as it was typed.
    """
    for line in secret.splitlines():
        if len(line) >= SHORTEST_SECRET and not line.startswith("-----"):
            _secrets.update((line, quote(line, safe=""), quote_plus(line)))


def without_secrets(text: str) -> str:
    """The same text, its lines too, without secrets, userinfo, queries of addresses and control characters."""
    text = _USERINFO.sub(r"\1", text)  # first, for a mask has a blank, and no address goes on after one
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _TOKENS.sub(lambda found: f"{found[1] or found[2] or found[3]} {MASK}", text)
    text = _QUERY.sub("?…", text)
    return _CONTROLS.sub("", COLOURS.sub("", text))


def cleaned(said: object, longest: int = LONGEST_CHARACTERS) -> str:
    """One line of what a stranger said; what is left out is counted."""
    whole = str(said)
    line = _BLANKS.sub(" ", without_secrets(_BLANKS.sub(" ", whole[:READ_AT_MOST_CHARACTERS]))).strip()
    if len(line) <= longest and len(whole) <= READ_AT_MOST_CHARACTERS:
        return line
    return f"{line[:longest]}… ({len(whole)} characters in all)"
