"""Texts that are kept under the hash of what they say: whoever knows the hash reads exactly what was written.

Releases record the hashes of what their engines are started from; nobody else names these objects.
"""

import hashlib
from collections.abc import Mapping

from blocks.errors import Refused, Unavailable
from blocks.ports.store import ConditionalStore, Store

ENGINES = "engines/"
"""The prefix of all of them in a store."""


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def keep(store: Store, texts: Mapping[str, bytes]) -> None:
    """Have each text there under its hash, read back; one that is there already is not written again."""
    for sha256, body in texts.items():
        key = f"{ENGINES}{sha256}"
        found = store.get(key)
        if found is not None and found.body == body:
            continue
        store.write(key, body)  # without a condition: whoever else writes there writes these bytes
        kept = store.get(key)
        if kept is None or sha256_of(kept.body) != sha256:
            raise Unavailable(f"{key} was written and does not read back as it was; see that nobody else writes there")


def read_kept(store: ConditionalStore, sha256: str, *, what: str) -> bytes:
    """Refused where it is there no more, or is not what it was; `what` is it, in words."""
    key = f"{ENGINES}{sha256}"
    found = store.get(key)
    if found is None:
        raise Refused(f"{key}, {what}, is in the store no more; put it back there, or release the model anew")
    if (seen := sha256_of(found.body)) != sha256:
        raise Refused(
            f"{key}, {what}, reads as something else (sha256 {seen}); put back an earlier version of that object, or "
            f"release the model anew"
        )
    return found.body
