"""What runs make that outlives them, as Prefect's assets: shown with how they came to be."""

from prefect.assets import Asset, AssetProperties
from prefect.logging import get_logger
from pydantic import ValidationError


def assets_at(url: str, *, name: str, description: str) -> list[Asset]:
    """The asset at that address; none, and a line in the log, where Prefect takes no such address for one."""
    try:
        return [Asset(key=url, properties=AssetProperties(name=name, description=description))]
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        get_logger(__name__).warning("%s is shown as no asset: %s", url, reason)
        return []
