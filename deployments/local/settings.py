"""Where the embedded stack lives, which ports it has, and the credentials that it made for itself."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from blocks.errors import Refused
from blocks.processes import free_port, is_free

HOST = "127.0.0.1"
SERVICE = "chat"
BUCKET = "skyferry"
USUAL_UI_PORT = 4200
USUAL_GATEWAY_PORT = 8080


@dataclass(frozen=True)
class Home:
    """The one directory that holds everything the embedded stack writes."""

    path: Path

    @property
    def run(self) -> Path:
        """Pid files and logs."""
        return self.path / "run"

    @property
    def env_file(self) -> Path:
        """What a shell reads so that `prefect` finds this stack."""
        return self.path / "env"

    @property
    def prefect(self) -> Path:
        return self.path / "prefect"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def hub(self) -> Path:
        return self.path / "hub"

    @property
    def gateway(self) -> Path:
        return self.path / "gateway"

    @property
    def fleet(self) -> Path:
        return self.path / "fleet"


@dataclass(frozen=True)
class StackSettings:
    """Chosen once, at the first `up`, and kept in `stack.json` for as long as the data."""

    ui_port: int
    gateway_port: int
    hub_port: int
    store_port: int
    access_key_id: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.ui_port}/api"

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.ui_port}"

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.gateway_port}/v1"

    @property
    def hub_url(self) -> str:
        return f"http://{HOST}:{self.hub_port}"

    @property
    def store_url(self) -> str:
        return f"http://{HOST}:{self.store_port}"

    @classmethod
    def read(cls, home: Home) -> Self | None:
        try:
            return cls(**json.loads((home.path / "stack.json").read_text()))
        except FileNotFoundError:
            return None

    @classmethod
    def make(cls, home: Home, ui_port: int | None, gateway_port: int | None) -> Self:
        """Ports that were asked for, or else the usual ones, or else free ones; Refused where one asked for is taken."""
        for name, port in (("ui", ui_port), ("gateway", gateway_port)):
            if port is not None and not is_free(HOST, port):
                raise Refused(f"port {port} on {HOST} is in use; free it, or choose another with --{name}-port")
        made = cls(
            ui_port=ui_port or _usual(USUAL_UI_PORT),
            gateway_port=gateway_port or _usual(USUAL_GATEWAY_PORT),
            hub_port=free_port(),
            store_port=free_port(),
        )
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = home.path / "stack.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(asdict(made), indent=1))
        return made


def _usual(port: int) -> int:
    return port if is_free(HOST, port) else free_port()
