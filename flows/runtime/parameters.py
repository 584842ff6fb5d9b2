"""What a person fills in: flat parameters to Prefect, one frozen and checked value to the flow.

Prefect makes the form, and `--param`, of a flow from its function's signature. A release has thirty parameters that the
flows of its chain share: each says its title, sentence, default and limits once, as the field of a model, and the
signature is made from that.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar, cast

from prefect import Flow
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.hashing import file_hash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from blocks.errors import Refused

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Parameters")

REPO = r"^[\w.-]+/[\w.-]+$"
LONGEST_MODEL_NAME, LONGEST_REVISION = 32, 16
"""Characters in the name of a run, which stands in a narrow column."""
LONGEST_SHOWN = 60
OF_VERSION_0_1 = inspect.Parameter("plan", inspect.Parameter.KEYWORD_ONLY, default=None)
"""What held all parameters then: taken from its deployments and scheduled runs, to be refused in words."""
UNSHOWN = frozenset({"missing", "extra_forbidden", "dict_type"})
"""Mistakes of which nobody knows that what was given is no secret: an environment holds some."""
COMMIT = re.compile(r"[0-9a-f]{40}")

ReadyTimeout = Annotated[
    float,
    Field(
        gt=0,
        title="Ready within (seconds)",
        description="A replica that answers nothing by then is taken down again, and the run fails.",
    ),
]
LateHours = Annotated[
    float,
    Field(
        gt=0,
        title="Late, at most (hours)",
        description="A run that was planned for an hour and begins later than this after it is refused; one that a "
        "person starts is never late.",
    ),
]
OrphanedAfterHours = Annotated[
    float,
    Field(
        ge=1,
        title="Orphaned after (hours)",
        description="Uploads that began earlier and are no object yet are aborted: no file takes longer.",
    ),
]


class Parameters(BaseModel):
    """The parameters of one flow run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str = Field(title="Service", description="The name of the Service block that users call.")

    def part(self, kind: type[BaseModel], **changed: object) -> dict[str, Any]:
        """What this says of the fields of `kind`, such as the parameters of one link of the chain."""
        return {name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields} | changed


class ModelParameters(Parameters):
    """Which model."""

    repo: str = Field(
        title="Model", description="The repository on the service's hub, such as Qwen/Qwen3-8B.", pattern=REPO
    )
    revision: str = Field(
        default="main",
        title="Revision",
        description="A branch, tag or commit; it is pinned to its commit when the run starts.",
    )

    @property
    def model_in_short(self) -> str:
        """For the name of a run: without the maker, and no longer than a column is wide."""
        revision = self.revision[:8] if COMMIT.fullmatch(self.revision) else _cut(self.revision, LONGEST_REVISION)
        return f"{short_repo(self.repo)}-at-{revision}"


def short_repo(repo: str) -> str:
    return _cut(repo.rpartition("/")[2], LONGEST_MODEL_NAME)


def _cut(words: str, longest: int) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


class Flat(Flow[P, R]):
    """A flow whose parameters are the fields of a model, which checks them all, and how they fit, before it begins."""

    kind: type[Parameters]
    name_of: Callable[[Any], str]
    """A run, from its parameters."""

    if TYPE_CHECKING:  # Prefect's says of parameters that are not spelled out that a state may come back

        def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - the reason stands above
            self, *_: P.args, **given: P.kwargs
        ) -> R: ...

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return _checked(self.name, self.kind, parameters).part(self.kind)


def flow_with(
    parameters: Callable[P, M],
    *,
    name: str,
    run_name: Callable[[M], str],
    tasks_at_once: int | None = None,
) -> Callable[[Callable[[M], R]], Flat[P, R]]:
    """Make a flow of a runbook that takes these `parameters`: Prefect, and callers, give each field by its name.

    What does not validate is Refused when the run begins, so before it has done anything.
    """
    kind = cast("type[M]", parameters)
    runner = cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=tasks_at_once))  # typed too narrowly there

    def name_of_this_run() -> str:
        return run_name(kind(**flow_run.parameters))

    def decorate(runbook: Callable[[M], R]) -> Flat[P, R]:
        @functools.wraps(runbook)
        def run(*_: P.args, **given: P.kwargs) -> R:
            return runbook(parameters(*_, **given))

        form = inspect.Signature([_parameter(name, field) for name, field in _needed_first(kind)])
        # Where inspect looks first. Prefect binds a run's parameters to the function's before it asks anybody, and ends
        # the process where they do not fit, with no word of it in the run; the form is made of the flow's own.
        lenient = [parameter.replace(default=_given_or(parameter)) for parameter in form.parameters.values()]
        run.__signature__ = form.replace(parameters=[*lenient, OF_VERSION_0_1])  # pyright: ignore[reportAttributeAccessIssue] - no function declares it
        version = file_hash(inspect.getfile(runbook))
        made = Flat(run, name=name, flow_run_name=name_of_this_run, task_runner=runner, version=version)
        made.__signature__ = form  # pyright: ignore[reportAttributeAccessIssue] - nor does a flow
        made.kind, made.name_of = kind, run_name
        return made

    return decorate


def _needed_first(kind: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Else in the order in which the model has them: Prefect's form keeps it."""
    return sorted(kind.model_fields.items(), key=lambda item: not item[1].is_required())


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Title and sentence are extras, for Prefect writes its own over those that an annotation has."""
    extra: dict[str, Any] = {"title": field.title or name, "description": field.description or ""}
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
        annotation=Annotated[field.annotation, *field.metadata, Field(json_schema_extra=extra)],
    )


def _given_or(parameter: inspect.Parameter) -> object:
    """Its default; None where it has to be given, and was not."""
    return None if parameter.default is inspect.Parameter.empty else parameter.default


def _checked(flow: str, kind: type[M], parameters: dict[str, Any]) -> M:
    """Refused in words, each mistake by the name of its parameter."""
    if parameters.get(OF_VERSION_0_1.name) is not None:
        raise Refused(
            f"{flow} was given a `plan`, as version 0.1 had it; parameters are flat now, as in `--param revision=v2`: "
            f"run `prefect deploy --all`, and start by hand what this run was to do"
        )
    optional = {name for name, field in kind.model_fields.items() if not field.is_required()}
    try:
        return kind.model_validate(
            {name: given for name, given in parameters.items() if given is not None or name in optional}
        )
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise Refused(f"{flow} did not begin: {'; '.join(map(_in_words, mistakes))}") from error


def _in_words(mistake: ErrorDetails) -> str:
    """Without a name where it is about how several fit together; what was given is shown where it may be."""
    message, name = mistake["msg"].removeprefix("Value error, "), ".".join(map(str, mistake["loc"]))
    given = repr(mistake["input"])
    is_shown = len(mistake["loc"]) == 1 and mistake["type"] not in UNSHOWN and len(given) <= LONGEST_SHOWN
    return ": ".join(filter(None, (name, f"{message}, not {given}" if is_shown else message)))
