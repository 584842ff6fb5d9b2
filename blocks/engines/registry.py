"""Which engines there are: one line each here, and those that other packages bring.

A package brings one with an entry point of the group `skyferry.engines` that names a `KnownEngine`.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from blocks.engines.known import KnownEngine
from blocks.engines.llama_cpp import LLAMA_CPP
from blocks.engines.sglang import SGLANG
from blocks.engines.vllm import VLLM
from blocks.errors import Refused

OWN = (
    VLLM,
    LLAMA_CPP,
    SGLANG,
)
GROUP = "skyferry.engines"


@cache
def engines() -> Mapping[str, KnownEngine]:
    """By name. Refused where what a package calls an engine is none, or has the name of another."""
    found = {known.name: known for known in OWN}
    for point in entry_points(group=GROUP):
        known = point.load()
        if not isinstance(known, KnownEngine):
            raise Refused(f"{point.value}, which a package installs as an engine, is no KnownEngine; mend or remove it")
        if found.setdefault(known.name, known) is not known:
            raise Refused(f"{point.value} is called {known.name}, as another engine is; rename or remove it")
    return found


def engine_named(name: str) -> KnownEngine:
    if (known := engines().get(name)) is None:
        raise Refused(f"there is no engine {name!r}; there are {', '.join(sorted(engines()))}")
    return known


def engine_of_task(run: str) -> KnownEngine | None:
    """Which engine a task's `run` starts; None where it is none of these."""
    return next((known for known in engines().values() if known.task_mark and re.search(known.task_mark, run)), None)
