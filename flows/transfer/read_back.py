"""What lies in a store, read back: the only thing that vouches for bytes which the store has not vouched for."""

import hashlib
from contextlib import closing
from threading import BoundedSemaphore

from blocks.ports.store import Objects

AT_ONCE = BoundedSemaphore(2)
"""Each reading holds a chunk or two of a store's in memory."""


def read_back(store: Objects, key: str, size_bytes: int) -> str:
    """The sha256 of an object, or, where it has another size, that; read to the size that it should have, no further.

    Refused where there is no such object.
    """
    digest, count = hashlib.sha256(), 0
    with AT_ONCE, closing(store.read(key)) as chunks:  # pyright: ignore[reportArgumentType] - stores' readers are generators
        for chunk in chunks:
            count += len(chunk)
            if count > size_bytes:
                return f"more than {size_bytes} bytes"
            digest.update(chunk)
    return digest.hexdigest() if count == size_bytes else f"{count} of {size_bytes} bytes"
