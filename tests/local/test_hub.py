"""What the embedded hub shows, and what it shows to nobody."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from deployments.local.hub import app


@dataclass(frozen=True)
class Hub:
    directory: Path

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app(self.directory))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path, follow_redirects=True)

        return asyncio.run(ask())


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A hub with one model, beside which there is a stack's store with its key."""
    model = tmp_path / "hub" / "maker" / "tiny" / "r1"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    security = tmp_path / "store" / "security"
    security.mkdir(parents=True)
    (security / "store.key").write_text("secret")
    return Hub(tmp_path / "hub")


def test_a_model_is_shown(hub: Hub) -> None:
    """By its name, and its files by theirs."""
    assert hub.get("/api/models/maker/tiny").json()["siblings"] == [{"rfilename": "config.json"}]
    assert hub.get("/maker/tiny/resolve/r1/config.json").text == "{}"


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/%2e%2e/store",
        "/api/models/%2e%2e/store/revision/security",
        "/api/models/%2e%2e/store/tree/security",
        "/%2e%2e/store/resolve/security/store.key",
        "/content/%2e%2e/store/security/store.key",
        "/api/models/%2e%2e/%2e",
        "/api/models/%2e/%2e%2e",
        "/content/maker/%2e%2e/tiny/r1/config.json",
        "/api/models/*/*",
        "/api/models/maker/t%3fny",
        "/api/models/maker/[t]iny",
        "/api/models/**/tiny",
        "/maker/tiny/resolve/r1/%2e%2e/%2e%2e/%2e%2e/%2e%2e/store/security/store.key",
        "/content/maker/tiny/r1//etc/passwd",
        "/content/maker/tiny/%2e%2e/%2e%2e/%2e%2e/store/security/store.key",
    ],
)
def test_nothing_beside_its_models_is_shown(hub: Hub, path: str) -> None:
    """Whatever a name means to the file system: anybody may ask, and the stack's keys lie in the next directory."""
    assert hub.get(path).status_code == httpx.codes.NOT_FOUND
