"""What Prefect shows of mirrors, and limits of what asks for them: neither keeps a mirror from being made."""

import pytest

from flows.mirror import mirror_model
from flows.runtime.assets import assets_at
from flows.runtime.limits import AT_ONCE, HUB, STOCK
from flows.tasks.market import ask_for_stock
from flows.tasks.mirror import choose_files, copy_file, look_up
from tests.flows.conftest import REPO, World


@pytest.mark.parametrize("url", ["s3://bucket/models/a/b/c", "gs://bucket/m", "file:///srv/m", "https://h.example/m"])
def test_an_address_is_an_asset(url: str) -> None:
    """Of each kind of store, and of a hub."""
    (asset,) = assets_at(url, name="a/b", description="")
    assert asset.key == url


@pytest.mark.parametrize("url", ["file:///srv/my models", "no scheme", f"s3://bucket/{'m' * 600}"])
def test_an_address_that_prefect_does_not_take_is_none(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It says so, and goes on."""
    assert assets_at(url, name="a/b", description="") == []
    assert f"{url} is shown as no asset" in caplog.text


def test_a_mirror_at_such_an_address_is_made_all_the_same(world: World) -> None:
    """Whole, as any other."""
    world.store.provider = "s3 with blanks"
    assert " " in world.store.url_of("")
    manifest = mirror_model(service="chat", repo=REPO, revision="v1")
    assert {file.path for file in manifest.files} == {"model.gguf", "README.md"}


def test_what_asks_hubs_and_clouds_can_be_limited() -> None:
    """By the tags that `skyferry up` knows; elsewhere nobody has to make a limit."""
    assert {tag for task in (look_up, choose_files, copy_file, ask_for_stock) for tag in task.tags} == AT_ONCE.keys()
    assert (look_up.tags, ask_for_stock.tags) == ({HUB}, {STOCK})
