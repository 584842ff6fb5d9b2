"""What a person fills in: flat, with titles and sentences, and refused in words before anything is done."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.utilities.callables import parameter_schema

from blocks.errors import Refused
from deployments.local.stack import prefect_file
from flows.mirror import MirrorParameters
from flows.provision import ProvisionParameters, provision_fleet
from flows.release import ReleaseParameters, release_model
from flows.runtime.parameters import Flat, Parameters
from tests.flows.conftest import REPO, World

LONGEST_RUN_NAME = 100
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(prefect_file().read_text())["deployments"]


def flow_of(deployment: dict[str, Any]) -> Flat[..., Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


FLOWS = [pytest.param(flow_of(each), each, id=each["entrypoint"].rpartition(".")[2]) for each in DEPLOYMENTS]


@pytest.mark.parametrize(("flow", "deployment"), FLOWS)
def test_the_form_of_each_flow_has_titles_and_sentences(flow: Flat[..., Any], deployment: dict[str, Any]) -> None:
    """Prefect makes it from the signature; what has to be filled in comes first, and the service before all."""
    schema = parameter_schema(flow)
    fields = sorted(schema.properties.items(), key=lambda field: field[1]["position"])
    for name, shown in fields:
        assert shown["title"] != name, name
        assert re.fullmatch(r"[A-Z].*[.]", shown["description"]), name
    names = [name for name, _ in fields]
    assert names[0] == "service"
    assert names[: len(schema.required)] == schema.required
    assert set(deployment["parameters"]) <= set(names)


@pytest.mark.parametrize(("flow", "deployment"), FLOWS)
def test_what_version_0_1_planned_is_refused_with_what_to_do(flow: Flat[..., Any], deployment: dict[str, Any]) -> None:
    """Its deployments and scheduled runs hold one `plan`."""
    with pytest.raises(Refused, match=r"was given a `plan`.*run `prefect deploy --all`"):
        flow.validate_parameters({"plan": deployment["parameters"]})


def test_a_plan_of_version_0_1_fails_its_run_in_those_words(world: World) -> None:
    """The message of the run's state, and nothing begun."""
    old: dict[str, Any] = {"plan": {"service": "chat", "repo": REPO}}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(release_model, parameters=old)
        ended: Any = run_flow(release_model, run, return_type="state")  # as the process of a worker does
        assert ended.is_failed()
        shown = client.read_flow_run(run.id).state
    assert shown is not None
    assert "run `prefect deploy --all`" in (shown.message or "")
    assert not world.fleet.orders


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong pattern": ({"repo": "model"}, r"repo: .*not 'model'"),
    "too small": ({"context_tokens": 0}, "context_tokens: .*greater than or equal to 1, not 0"),
    "stages that do not rise": ({"stages_percent": [50, 20, 100]}, r"\[50, 20, 100\] do not rise to 100"),
    "a stage that never passes": ({"stage_seconds": 9999}, "lower stage_seconds or raise stage_deadline_seconds"),
    "nobody to ask": ({"approve_before_percent": [60]}, r"nobody would be asked before \[60\]"),
    "two at once": ({"context_tokens": 0, "spot": "maybe"}, "context_tokens: .*; spot: .*not 'maybe'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_done(world: World, name: str) -> None:
    """Each by its parameter and with what was given; those between several parameters as well."""
    given, words = MISTAKES[name]
    with pytest.raises(Refused, match=f"release-model did not begin: .*{words}"):
        release_model(**{"service": "chat", "repo": REPO, **given})
    assert not world.fleet.orders
    assert not world.record.releases


def test_a_link_of_the_chain_gets_its_own_part() -> None:
    """By name, so that neither is said twice; what is changed for the link is changed."""
    given = ReleaseParameters(service="chat", repo=REPO, spot="only", cells=("aws",), ignore=("*.md",))
    mirror, fleet = given.part(MirrorParameters, revision="c" * 40), given.part(ProvisionParameters)
    assert (mirror["revision"], mirror["ignore"]) == ("c" * 40, ("*.md",))
    assert mirror.keys() == set(MirrorParameters.model_fields)
    assert (given.placement.spot, given.placement.cells) == ("only", ("aws",))
    assert provision_fleet.validate_parameters(fleet)["cells"] == ("aws",)


LONG: dict[str, Any] = {
    "service": "a" * 31,
    "repo": f"maker/{'model-' * 20}",
    "revision": f"feature/{'x' * 60}",
    "reason": "slow",
    "release": f"{'a' * 31}-1a2b3c4d",
}


@pytest.mark.parametrize(("flow", "deployment"), FLOWS)
def test_names_of_runs_stay_short(flow: Flat[..., Any], deployment: dict[str, Any]) -> None:  # noqa: ARG001 - one table for all
    """Whatever the service, the repository and the branch are called."""
    given = {name: value for name, value in LONG.items() if name in flow.kind.model_fields}
    assert len(flow.name_of(flow.kind(**given))) <= LONGEST_RUN_NAME


@pytest.mark.parametrize(
    ("revision", "name"),
    [("main", "model-at-main"), ("0123456789abcdef" * 2 + "01234567", "model-at-01234567")],
)
def test_a_run_is_named_for_what_it_does(revision: str, name: str) -> None:
    """A commit by its first eight digits, as people say it."""
    assert ReleaseParameters(service="chat", repo="maker/model", revision=revision).model_in_short == name


def test_each_field_of_a_flow_is_one_parameter() -> None:
    """In Python as well: keyword by keyword, with the model's defaults."""
    check: Callable[..., dict[str, Any]] = release_model.validate_parameters
    assert check({"service": "chat", "repo": REPO})["context_tokens"] == 4096
    with pytest.raises(Refused, match=r"stagess: Extra inputs are not permitted$"):
        check({"service": "chat", "repo": REPO, "stagess": [100]})
    assert issubclass(release_model.kind, Parameters)
