"""What Skyferry knows of one engine: all that an engine's file says, and by which flags and environment are judged."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blocks.cleaning import without_secrets
from blocks.errors import Refused
from blocks.ports.fleet import EngineChoice, EngineSettings

FLAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*")
SECRET = re.compile(
    r"(^|[-_])(api-?_?keys?|keys?|token|secrets?|passwords?|passwd|credentials?|hf-token)$", re.IGNORECASE
)
"""Names of what is a secret: ledgers, reports and command lines show flags and environment."""
OF_ANY_ENGINE = frozenset(
    {"host", "port", "uds", "model", "alias", "served-model-name", "middleware", "ssl-keyfile", "ssl-certfile"}
)
"""Flags that Skyferry relies on, whichever engine it is."""
OF_THE_MACHINE = frozenset(
    {
        "PATH",
        "HOME",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "LD_PRELOAD",
        "LD_AUDIT",
        "LD_LIBRARY_PATH",
        "BASH_ENV",
    }
)
"""Whoever sets these decides which programs run, and the guard of the key is one of them."""


@dataclass(frozen=True)
class LocalStart:
    """What a replica on this machine is started with."""

    python: Path
    """The interpreter of the environment that the engine is installed in."""
    weights: Path
    """One file or a folder, as `KnownEngine.weights` says."""
    host: str
    port: int
    service: str
    """What users call the model."""
    api_key: str
    settings: EngineSettings
    flags: Sequence[str]
    """Words for the end of the command line."""


@dataclass(frozen=True)
class LocalCommand:
    """The command that starts it; what is secret stands in its environment only."""

    words: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class KnownEngine:
    """One engine. What each of them has to keep stands in tests/contracts/test_engine_keeps.py, which holds it to it.

    It is asked whether it is ready with GET /health, which is open to everybody and 200 only while it takes requests.
    """

    name: str
    """In blocks, ledgers and reports."""
    package: str
    """The distribution that brings it, whose version is the engine's."""
    metrics: Mapping[str, str]
    """What its page of metrics calls the fields of `blocks.ports.engine.Load`."""
    task_mark: str
    """A regular expression for what the `run` of a task has in it that starts this engine."""
    task: str = ""
    """Its SkyPilot task, below Skyferry's root; empty where there is none."""
    flags_of: str = ""
    """The version that `flags` and `variables` are those of; of other versions what is unknown is only warned of. Empty
    where a program of Skyferry's takes the flags, whatever the version."""
    flags: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    """The environment variables of its own."""
    variables_prefix: str = ""
    """What the names of all its own begin with."""
    ours: Mapping[str, str] = field(default_factory=dict)
    """Flags and variables that only Skyferry sets: by name, what to do instead, as the end of a sentence."""
    together: Mapping[str, str] = field(default_factory=dict)
    """Flags that have no effect, or end the engine, without another one."""
    unsized: frozenset[str] = frozenset()
    """Flags that change what a replica needs of memory in a way that sizing does not know."""
    shows_requests: frozenset[str] = frozenset()
    """Flags that write into the log what users ask."""
    weights: Literal["a folder", "one GGUF file"] = "a folder"
    """What it is started on."""
    local: Callable[[LocalStart], LocalCommand] | None = None
    """How it is started on this machine; None where it cannot be."""
    starts_within_seconds: float = 30
    """From a local start until it listens."""
    ends_within_seconds: float = 10
    """What SIGTERM is given before SIGKILL: an engine that finishes what it has in flight takes longer to end."""
    never_ran: str = ""
    """What of this file was never tried on the real thing; empty where all of it was."""


def check(known: KnownEngine | None, choice: EngineChoice, version: str) -> tuple[str, ...]:
    """Refused where a flag or a variable cannot be, or must not be; sentences on what nobody can know otherwise.

    `known` is None for an engine that the registry does not have: of its flags only the dangerous ones are known.
    """
    called = known.name if known else "this task's engine"
    warnings = [f"{called} is drafted: {known.never_ran}"] if known and known.never_ran else []
    for name, value in choice.flags.items():
        _check_flag(called, name, value)
        if known is not None:
            warnings += _known_flag(known, name, version)
        elif _plain(name) in OF_ANY_ENGINE:
            raise Refused(f"engine flag {name} is Skyferry's to set; write into the task what its engine needs")
    for name, value in choice.environment.items():
        _check_variable(called, name, value)
        if known is not None:
            warnings += _known_variable(known, name, version)
    if known is not None:
        _check_together(known, choice.flags)
    return tuple(warnings)


def _check_flag(called: str, name: str, value: object) -> None:
    if not FLAG.fullmatch(name):
        raise Refused(
            f"engine flag {name!r} of {called} is no flag's name; write it in small letters without the dashes before "
            f"it, such as max-num-batched-tokens"
        )
    if SECRET.search(name):
        raise Refused(
            f"engine flag {name} of {called} would put a secret on a command line, which everybody on the machine can "
            f"read, and into the ledger; leave it out"
        )
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Refused(
            f"engine flag {name} of {called} has a value that is not of JSON ({error}); write it anew"
        ) from None
    if "\\u0000" in text or without_secrets(text) != text:
        raise Refused(
            f"the value of engine flag {name} of {called} holds a secret or a character of no text; leave it out"
        )
    if isinstance(value, list) and any(str(item).startswith("-") or isinstance(item, list | dict) for item in value):
        raise Refused(
            f"engine flag {name} of {called} has {text} as its values, of which one would be read as a flag of its "
            f"own; write each flag by its name"
        )


def _check_variable(called: str, name: str, value: object) -> None:
    if not VARIABLE.fullmatch(name) or not isinstance(value, str) or "\0" in value:
        raise Refused(f"engine variable {name!r} of {called} is none; give a name of letters and digits, and a text")
    if name in OF_THE_MACHINE or name.startswith("SKYFERRY_"):
        raise Refused(f"engine variable {name} of {called} decides what runs on the machine; only Skyferry sets it")
    if SECRET.search(name) or without_secrets(value) != value:
        raise Refused(
            f"engine variable {name} of {called} would put a secret into the ledger, which many can read; leave it out"
        )


def _plain(name: str) -> str:
    """Without the `no-` that turns a flag off."""
    return name.removeprefix("no-")


def _known_flag(known: KnownEngine, name: str, version: str) -> list[str]:
    plain = name if name in known.flags else _plain(name)
    if (instead := known.ours.get(plain)) is not None:
        raise Refused(f"engine flag {name} of {known.name} is Skyferry's to set: {instead}")
    if known.flags and plain not in known.flags:
        # Some parsers take the beginning of a flag for the flag.
        if (whole := next((flag for flag in known.ours if flag.startswith(plain)), None)) is not None:
            raise Refused(f"engine flag {name} of {known.name} may be read as {whole}: {known.ours[whole]}")
        if known.flags_of in {"", version}:
            raise Refused(
                f"{known.name} {version} knows no flag {name}{_like(name, known.flags)}; correct or remove it"
            )
        return [f"{known.name} {known.flags_of} knows no flag {name}, and what {version} knows is not known here"]
    notes = []
    if plain in known.unsized:
        notes.append(f"{name} changes how much memory a replica needs, and sizing does not know by how much")
    if plain in known.shows_requests:
        notes.append(f"{name} writes what users ask into the engine's log")
    return notes


def _known_variable(known: KnownEngine, name: str, version: str) -> list[str]:
    if (instead := known.ours.get(name)) is not None:
        raise Refused(f"engine variable {name} of {known.name} is Skyferry's to set: {instead}")
    is_own = bool(known.variables_prefix) and name.startswith(known.variables_prefix)
    if not is_own or name in known.variables:
        return []
    if known.flags_of in {"", version}:
        raise Refused(f"{known.name} {version} reads no {name}{_like(name, known.variables)}; correct or remove it")
    return [f"{known.name} {known.flags_of} reads no {name}, and what {version} reads is not known here"]


def _check_together(known: KnownEngine, flags: Mapping[str, object]) -> None:
    for name in flags:
        if name.startswith("no-") and name not in known.flags and _plain(name) in flags:
            raise Refused(f"engine flags {name} and {_plain(name)} of {known.name} contradict each other; keep one")
        needed = known.together.get(name)
        if needed is not None and flags[name] is not False and flags.get(needed) in {None, False}:
            raise Refused(f"engine flag {name} of {known.name} does nothing without {needed}; give both, or neither")


def _like(name: str, known: frozenset[str]) -> str:
    """The names that share the most of their parts, as somebody who mistyped would want to hear."""
    parts = set(re.split("[-_]", name))
    near = sorted(known, key=lambda other: (-len(parts & set(re.split("[-_]", other))), other))[:2]
    shared = [other for other in near if parts & set(re.split("[-_]", other))]
    return f" (there is {' and '.join(shared)})" if shared else ""


def canonical(flags: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """As a build records them: sorted, each value in JSON."""
    return tuple((name, json.dumps(flags[name], sort_keys=True)) for name in sorted(flags))


def words(flags: Sequence[tuple[str, str]]) -> list[str]:
    """For the end of a command line, one flag after the other; no shell ever reads them.

    A value stands in one word with its flag, so that nothing in it can be another flag. True is the flag alone, false
    is `--no-` and the flag, a list is several words, and anything else that JSON has is handed over as JSON.
    """
    line: list[str] = []
    for name, text in flags:
        value = json.loads(text)
        if value is True:
            line.append(f"--{name}")
        elif value is False:
            line.append(f"--no-{name}")
        elif isinstance(value, list):
            line += [f"--{name}", *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        else:
            line.append(f"--{name}={value if isinstance(value, str) else json.dumps(value, sort_keys=True)}")
    return line
