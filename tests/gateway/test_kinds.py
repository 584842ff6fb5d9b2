"""Which paths a service serves whose models are all of one kind."""

from collections.abc import Iterator

import pytest

from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import RequestKind
from deployments.haproxy.config import ROUTES
from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway, wait_until

pytestmark = pytest.mark.server
KINDS: dict[str, ModelKind] = {"chat": "embedding", "embed": "rerank"}
"""Of the two services that each gateway here has."""
SERVED: dict[str, set[RequestKind]] = {"chat": {"embedding"}, "embed": {"rerank", "score"}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway") / "run", kinds=KINDS) as gateway, Replica("blue") as blue:
        for service in KINDS:
            gateway.by_socket.attach(service, "blue", blue.address, is_tls=False)
            wait_until("it is up", lambda service=service: gateway.by_socket.servers(service)[0].state == "up")
        yield gateway


@pytest.mark.parametrize("service", KINDS)
def test_a_service_of_one_kind_serves_its_paths_alone(gateway: RunningGateway, service: str) -> None:
    """Each other one is a 404 that says which there are, and stands in no log."""
    cursor = gateway.by_socket.requests(service, None).cursor
    answers = {
        path: gateway.users.post(gateway.url(service, path), json={})
        for path, (method, _) in ROUTES.items()
        if method == "POST"
    }
    served = {path for path, answer in answers.items() if answer.status_code == 200}
    assert {ROUTES[path][1] for path in served} == SERVED[service]
    told = answers["/v1/chat/completions"]
    assert told.status_code == 404
    assert told.json()["error"]["message"].endswith(
        f"there is: {', '.join([*sorted(served, key=list(ROUTES).index), '/v1/models'])}"
    )
    wait_until("they are logged", lambda: len(gateway.by_socket.requests(service, cursor).outcomes) >= len(served))
    logged = gateway.by_socket.requests(service, cursor).outcomes
    assert {outcome.kind for outcome in logged} == SERVED[service]
    assert gateway.users.get(gateway.url(service, "/v1/models")).status_code == 200
