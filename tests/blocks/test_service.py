"""The service block, saved and read again."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.service import Service
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.google_storage import GoogleStore
from blocks.stores.kinds import AnyStore
from blocks.stores.s3 import S3Store


@pytest.mark.parametrize("store", [S3Store(bucket="b"), GoogleStore(bucket="b")])
@pytest.mark.parametrize("kind", [LocalFleet, SkyPilotFleet])
def test_a_saved_service_keeps_the_kinds_of_its_parts(
    tmp_path: Path, store: AnyStore, kind: type[LocalFleet | SkyPilotFleet]
) -> None:
    """Though another kind has the same required fields: a local fleet was once read as one of SkyPilot's."""
    service = Service(
        name="chat",
        endpoint="http://127.0.0.1:8000/v1",
        hub=HuggingFaceHub(token=SecretStr("hf_0123456789abcdef")),
        store=store,
        fleet=kind(directory=tmp_path, store=store),
        gateway=HAProxyGateway(admin_socket=tmp_path / "admin.sock"),
    )
    dumped = service.model_dump(mode="json")
    for told in (dumped, _without_kinds(dumped)):
        loaded = Service.model_validate(told)
        assert (type(loaded.fleet), type(loaded.store), type(loaded.fleet.store)) == (kind, type(store), type(store))


def _without_kinds(dumped: Any) -> Any:
    """As Prefect gives it where each part is a document of its own."""
    if isinstance(dumped, dict):
        return {name: _without_kinds(part) for name, part in dumped.items() if name != "block_type_slug"}
    return dumped
