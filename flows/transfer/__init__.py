"""The engine of the mirror: parts, hashes, and what goes on where an earlier run died."""
