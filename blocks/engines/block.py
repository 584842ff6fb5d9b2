"""The engine of a service, as a block: what its releases are started with unless one of them says otherwise."""

from collections.abc import Mapping
from typing import Any, Self

import yaml
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator, model_validator

from blocks.engines.known import VERSION, check
from blocks.engines.registry import engine_named
from blocks.errors import Refused
from blocks.ports.fleet import EngineChoice


class Engine(Block):
    """An engine with its version, flags and environment. A release records all of it, so a change is a release."""

    _block_type_name = "Engine"
    _block_type_slug = "engine"
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = Field(
        title="Engine", description="What serves the model: vllm, llama.cpp, or another engine that is installed here."
    )
    version: str = Field(
        default="",
        title="Version",
        description="Its version; left empty, the one that Skyferry was tried with, or that this machine has.",
    )
    flags: dict[str, Any] = Field(
        default_factory=dict,
        title="Flags",
        description='Flags beside those that Skyferry sets, without their dashes, such as {"max-num-batched-tokens": '
        "8192}. True is the flag alone, false turns it off, and a list is several values.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        title="Environment",
        description="Environment variables of the engine; never a secret, for each release's ledger shows them.",
    )
    task: str = Field(
        default="",
        title="Task",
        description="The engine as a SkyPilot task in YAML, without a place to run; left empty, Skyferry's own.",
    )

    @field_validator("version")
    @classmethod
    def _is_a_version(cls, version: str) -> str:
        if version and not VERSION.fullmatch(version):
            raise ValueError("the version is none; give one such as 0.33.0")
        return version

    @field_validator("task")
    @classmethod
    def _is_a_task(cls, task: str) -> str:
        return task if not task else check_task(task)

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Self:
        """What can be known without a fleet, where it is typed."""
        try:
            known = engine_named(self.name)
            check(known, self.choice, self.version or known.flags_of)
        except Refused as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def choice(self) -> EngineChoice:
        return EngineChoice(self.name, self.version, self.flags, self.environment, self.task)


def check_task(task: str) -> str:
    """ValueError where it is no SkyPilot task, or chooses itself where it runs."""
    try:
        parsed = yaml.safe_load(task)
    except yaml.YAMLError as error:
        raise ValueError(f"the task is no YAML ({error})") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("run"), str):
        raise ValueError("the task has no `run`; give a SkyPilot task as in deployments/engines")  # noqa: TRY004 - pydantic's error
    if several := {"any_of", "ordered"} & {*(parsed.get("resources") or {})}:
        raise ValueError(f"the task chooses among places ({', '.join(several)}); leave that to the plan")
    return task


def chosen(
    engine: Engine | None, version: str, flags: Mapping[str, Any], environment: Mapping[str, str]
) -> EngineChoice | None:
    """A service's engine with what one release says of it; None where nobody says anything.

    A release's flags and variables replace those of the same name; a flag with no value at all takes one away.
    """
    if engine is None and not version and not flags and not environment:
        return None
    known = EngineChoice() if engine is None else engine.choice
    together = {**known.flags, **flags}
    return EngineChoice(
        name=known.name,
        version=version or known.version,
        flags={name: value for name, value in together.items() if value is not None},
        environment={**known.environment, **environment},
        task=known.task,
    )
