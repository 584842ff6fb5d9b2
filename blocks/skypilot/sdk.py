"""SkyPilot's Python SDK, imported only where it is needed: that takes seconds."""

import os
from importlib import import_module
from threading import Lock
from typing import Any

from pydantic import SecretStr

from blocks.errors import Refused

ENDPOINT_VARIABLE = "SKYPILOT_API_SERVER_ENDPOINT"
IMPORTING = Lock()
MODULES = (
    "sky.catalog.common",
    "sky.catalog.gcp_catalog",
    "sky.client.sdk",
    "sky.global_user_state",
    "sky.server.common",
    "sky.skylet.autostop_lib",
    "sky.skypilot_config",
    "sky.utils.registry",
)
"""What is used of SkyPilot here, reached by way of its first name."""


def skypilot() -> Any:
    """The SDK with those modules."""
    with IMPORTING:  # of threads that import it side by side, one may see half of it
        for name in MODULES:
            import_module(name)
        return import_module("sky")


def speak_with(api_server: SecretStr | None) -> None:
    """Have this process speak with that API server; Refused where it speaks with another one already."""
    if api_server is None:
        return
    wanted = api_server.get_secret_value()
    # SkyPilot reads this once in the life of a process.
    if os.environ.setdefault(ENDPOINT_VARIABLE, wanted) != wanted:
        raise Refused(
            f"this process speaks with another SkyPilot API server than the block names; "
            f"unset {ENDPOINT_VARIABLE}, or run it in a process of its own"
        )
