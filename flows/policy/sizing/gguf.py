"""What does the beginning of a GGUF file say of its model?

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The model's own numbers stand in it before the
tokenizer's long lists, so that the beginning is enough and the weights need not be read.
"""

import struct
from collections.abc import Mapping

from blocks.errors import Refused

ENOUGH_BYTES = 1 << 20
"""How much of the beginning to read: the numbers that matter stand in its first kilobytes."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Both lay their metadata out alike; version 1 is older than any file that llama.cpp still reads."""
TEXT, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's numbers for the kinds of a value, as `struct` knows them."""

Value = int | float | str | tuple[int | float, ...]


class _Beginning:
    """Bytes read one value after the other; EOFError where they end in the middle of one."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise EOFError
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, layout: str, count: int = 1) -> tuple[int | float, ...]:
        # Measured before it is unpacked: a count that is a lie must not become a layout of that length.
        return struct.unpack(f"<{count}{layout}", self.take(count * struct.calcsize(f"<{layout}")))

    def whole(self, layout: str) -> int:
        return int(self.numbers(layout)[0])

    def text(self) -> str:
        return self.take(self.whole("Q")).decode(errors="replace")


def metadata(beginning: bytes) -> Mapping[str, Value]:
    """Every key that stands in the beginning as a whole; of a list of texts, how many they are.

    Refused where the bytes are no GGUF. Where they end early, what comes after them is not there.
    """
    if beginning[:4] != MAGIC:
        raise Refused(f"the file begins with {beginning[:4]!r} and a GGUF file with {MAGIC!r}; mirror it again")
    found: dict[str, Value] = {}
    read = _Beginning(beginning)
    read.take(len(MAGIC))
    try:
        if (version := read.whole("I")) not in VERSIONS:
            raise Refused(
                f"the GGUF file has version {version}, and {' and '.join(map(str, VERSIONS))} can be read, "
                "little-endian; convert the model anew"
            )
        read.whole("Q")  # how many tensors there are
        for _ in range(read.whole("Q")):
            key, kind = read.text(), read.whole("I")
            if kind == TEXT:
                found[key] = read.text()
            elif kind != ARRAY:
                found[key] = read.numbers(_layout(kind, key))[0]
            elif (kind := read.whole("I")) != TEXT:
                found[key] = read.numbers(_layout(kind, key), read.whole("Q"))
            else:
                found[key] = count = read.whole("Q")
                for _ in range(count):
                    read.text()
    except EOFError:
        pass  # the beginning ends here; whoever needs a key that is missing says so
    return found


def _layout(kind: int, key: str) -> str:
    if kind not in SCALARS:
        raise Refused(f"the GGUF file's {key} is of kind {kind}, which cannot be read; convert the model anew")
    return SCALARS[kind]
