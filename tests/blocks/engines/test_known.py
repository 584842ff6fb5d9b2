"""Flags and environment of engines: what is refused before anything is spent, and what reaches the command line."""

import pytest
from pydantic import ValidationError

from blocks.cleaning import mask_from_now_on
from blocks.engines.block import Engine, chosen
from blocks.engines.known import KnownEngine, canonical, check, words
from blocks.engines.llama_cpp import LLAMA_CPP
from blocks.engines.registry import engine_named, engine_of_task, engines
from blocks.engines.sglang import SGLANG
from blocks.engines.vllm import VLLM
from blocks.errors import Refused
from blocks.ports.fleet import EngineChoice

OWN = pytest.mark.parametrize("known", [VLLM, LLAMA_CPP, SGLANG], ids=lambda known: known.name)


def refusal(known: KnownEngine | None, version: str | None = None, **choice: dict[str, object]) -> str:
    with pytest.raises(Refused) as refused:
        check(known, EngineChoice(**choice), known.flags_of if known and version is None else version or "")  # pyright: ignore[reportArgumentType] - hostile on purpose
    return str(refused.value)


@OWN
def test_what_skyferry_relies_on_is_its_own(known: KnownEngine) -> None:
    """Host, port, key, name: refused by name, with what to do instead, and so is turning off what it sets."""
    for flag in ("host", "port", "api-key"):
        assert flag in refusal(known, flags={flag: "x"})
    for flag in known.ours:
        if flag.islower():
            assert "Skyferry's to set" in refusal(known, flags={flag: "x"}) or "secret" in refusal(
                known, flags={flag: "x"}
            )
            assert refusal(known, flags={f"no-{flag}": True})


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("middleware", "guard of the key"),
        ("ssl-keyfile", "certificate"),
        ("served-model-name", "service's name"),
        ("max-model-len", "set context_tokens"),
        ("max-num-seqs", "set parallel_requests"),
        ("disable-log-stats", "nobody knows when the engine is idle"),
        ("allowed-local-media-path", "machine's files"),
        ("config", "file of further flags"),
        ("hf-token", "secret on a command line"),
    ],
)
def test_vllms_dangerous_flags_are_refused(flag: str, words: str) -> None:
    """Each with its reason."""
    assert words in refusal(VLLM, flags={flag: "x"})


@pytest.mark.parametrize(
    "variable", ["VLLM_SERVER_DEV_MODE", "VLLM_USE_RUST_FRONTEND", "VLLM_API_KEY", "PYTHONPATH", "LD_PRELOAD", "PATH"]
)
def test_the_guards_way_round_is_refused_in_the_environment(variable: str) -> None:
    """Dev mode, another server without the guard, another guard, another program."""
    assert variable in refusal(VLLM, environment={variable: "1"})


def test_an_unknown_flag_is_refused_with_its_like() -> None:
    """Of the version whose flags are known; of another it is a warning, for nobody knows."""
    assert "there is max-num-batched-tokens" in refusal(VLLM, flags={"max-num-batch-tokens": 8192})
    assert "VLLM_ATTN reads" not in refusal(VLLM, environment={"VLLM_LOGING_LEVEL": "INFO"})
    (warning,) = check(VLLM, EngineChoice(flags={"brand-new": 1}), "0.99.0")
    assert "brand-new" in warning
    (warning,) = check(VLLM, EngineChoice(environment={"VLLM_BRAND_NEW": "1"}), "0.99.0")
    assert "VLLM_BRAND_NEW" in warning


@pytest.mark.parametrize("flag", ["hos", "middl", "served-model", "no-disable-log-stat"])
def test_the_beginning_of_a_flag_is_no_way_round(flag: str) -> None:
    """Parsers may take it for the whole, of a version whose flags nobody here knows too."""
    assert "may be read as" in refusal(VLLM, "0.99.0", flags={flag: "x"})


def test_an_engine_that_nobody_knows_keeps_its_address_too() -> None:
    """Its flags cannot be checked; what Skyferry relies on is refused all the same."""
    assert "Skyferry's to set" in refusal(None, flags={"host": "0.0.0.0"})  # noqa: S104 - refused
    assert not check(None, EngineChoice(flags={"anything-else": 1}), "")


def test_flags_that_contradict_each_other_are_refused() -> None:
    """A flag and its opposite; one that does nothing without another."""
    assert "contradict" in refusal(VLLM, flags={"enable-prefix-caching": True, "no-enable-prefix-caching": True})
    assert "enable-auto-tool-choice" in refusal(VLLM, flags={"tool-call-parser": "hermes"})
    assert not check(
        VLLM, EngineChoice(flags={"tool-call-parser": "hermes", "enable-auto-tool-choice": True}), "0.33.0"
    )


def test_what_changes_memory_or_shows_requests_is_warned_of() -> None:
    """Sizing does not know of the first, and the log would show the second."""
    (size, log) = check(VLLM, EngineChoice(flags={"kv-cache-dtype": "fp8", "enable-log-requests": True}), "0.33.0")
    assert "memory" in size
    assert "log" in log


@pytest.mark.parametrize("flag", ["", "--seed", "Seed", "seed=1 --host", "seed;reboot", "a b", "ab\n"])
def test_what_is_no_flags_name_is_refused(flag: str) -> None:
    """Dashes, blanks, and what a shell would read."""
    assert "no flag's name" in refusal(VLLM, flags={flag: 1})


def test_no_value_becomes_a_flag_of_its_own() -> None:
    """A single value stands in one word with its flag; among several, one that looks like a flag is refused."""
    hostile = "x --host 0.0.0.0; $(reboot) `id` 'quoted' \"twice\"\n--port 1"
    assert words(canonical({"chat-template": hostile})) == [f"--chat-template={hostile}"]
    assert "flag of its own" in refusal(VLLM, flags={"lora-modules": ["a", "--host"]})
    assert "holds a secret or a character of no text" in refusal(VLLM, flags={"chat-template": "a\0b"})


def test_values_are_written_as_an_engine_reads_them() -> None:
    """Numbers, true and false, several, and objects as JSON; in one order, whoever wrote them."""
    flags = {"seed": 1, "enforce-eager": True, "async-scheduling": False, "b": ["x", 2], "a": {"z": 1, "k": None}}
    assert words(canonical(flags)) == [
        '--a={"k": null, "z": 1}',
        "--no-async-scheduling",
        *("--b", "x", "2"),
        "--enforce-eager",
        "--seed=1",
    ]
    assert canonical(flags) == canonical(dict(reversed([*flags.items()])))


@pytest.mark.parametrize("known", [VLLM, None])
def test_no_secret_gets_into_a_ledger(known: KnownEngine | None) -> None:
    """By its name, or because a block holds it; also of an engine that nobody knows."""
    assert "secret" in refusal(known, flags={"some-password": "x"})
    assert "secret" in refusal(known, environment={"HF_TOKEN": "x"})
    assert "secret" in refusal(known, environment={"AWS_SECRET_ACCESS_KEY": "x"})
    mask_from_now_on("correct-horse-battery")
    said = refusal(known, flags={"seed": "correct-horse-battery"})
    assert "secret" in said
    assert "correct-horse" not in said
    assert "secret" in refusal(known, environment={"NOTE": "correct-horse-battery"})


@OWN
def test_an_engines_file_fits_together(known: KnownEngine) -> None:
    """What is warned of or required is a flag that it has, and its load can be read."""
    assert known.unsized | known.shows_requests <= known.flags
    assert {*known.together, *known.together.values()} <= known.flags
    assert {"running", "waiting", "prompt_tokens", "generated_tokens"} <= {*known.metrics}


def test_engines_are_found_by_name_and_by_task() -> None:
    """Saved tasks of 0.1 name none; what they run tells."""
    assert {"vllm", "llama.cpp", "sglang"} <= {*engines()}
    with pytest.raises(Refused, match=r"no engine 'vlm'; there are llama\.cpp, sglang, vllm"):
        engine_named("vlm")
    assert engine_of_task('exec node.py -- "$HOME/skyferry/venv/bin/vllm" serve {weights_dir}') is VLLM
    assert engine_of_task("vllm serve x") is VLLM
    assert engine_of_task('"$engine" "$HOME/skyferry/llama_cpp.py"') is LLAMA_CPP
    assert engine_of_task("run: something else") is None


def test_a_block_refuses_where_it_is_typed() -> None:
    """Name, version, flags and task, in words and without their values."""
    with pytest.raises(ValidationError, match="no engine 'vlm'"):
        Engine(name="vlm")
    with pytest.raises(ValidationError, match="the version is none"):
        Engine(name="vllm", version="0.33; reboot")
    with pytest.raises(ValidationError, match="knows no flag max-num-batch-tokens"):
        Engine(name="vllm", flags={"max-num-batch-tokens": 1})
    with pytest.raises(ValidationError, match="no `run`"):
        Engine(name="vllm", task="setup: echo")


def test_a_release_says_otherwise_flag_by_flag() -> None:
    """Over the service's engine; null takes one away; nothing said at all is no choice."""
    engine = Engine(name="vllm", version="0.33.0", flags={"seed": 1, "enforce-eager": True}, environment={"A": "1"})
    choice = chosen(engine, "0.34.0", {"seed": 2, "enforce-eager": None}, {"B": "2"})
    assert choice == EngineChoice("vllm", "0.34.0", {"seed": 2}, {"A": "1", "B": "2"})
    assert chosen(None, "", {}, {}) is None
    assert chosen(None, "", {"seed": 1}, {}) == EngineChoice(flags={"seed": 1})
