"""Every block type, as Prefect shows it: found unregistered, with a description and where its vendor documents it."""

from importlib.metadata import entry_points

import pytest
from prefect.blocks.core import Block
from prefect.plugins import load_prefect_collections
from prefect.utilities.dispatch import get_registry_for_type

from tests.blocks.test_fields import BLOCKS

OURS = {"Directory Store", "Local Fleet", "Service"}
"""No vendor documents these, and the project has no public pages of its own yet."""


def test_prefect_finds_every_block_type_by_itself() -> None:
    """A server or worker in whose environment Skyferry is: `prefect block register` is for others."""
    assert [point.value for point in entry_points(group="prefect.collections", name="skyferry")] == ["blocks.service"]
    assert not isinstance(load_prefect_collections()["skyferry"], Exception)
    known = get_registry_for_type(Block) or {}
    assert {block.get_block_type_slug() for block in BLOCKS} <= known.keys()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_block_type_is_shown_whole(block: type[Block]) -> None:
    """With a sentence, its fields' titles and sentences, and its vendor's documentation; pictures would be remote."""
    shown = block._to_block_type()
    assert (shown.description or "").rstrip().endswith(".")
    assert shown.logo_url is None
    if shown.name not in OURS:
        assert str(shown.documentation_url).startswith("https://")
    for name, field in block.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert field.description.endswith("."), name
