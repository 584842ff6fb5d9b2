"""Where the embedded stack lives, which ports it has, and the credentials that it made for itself."""

import json
import os
import pwd
import secrets
import shlex
import stat
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from blocks.errors import Refused
from blocks.files import write_private
from blocks.local.processes import by_whom, free_port, is_free
from deployments.local.seaweed import Ports, SeaweedFS

HOST = "127.0.0.1"
SERVICE = "chat"
USUAL_UI_PORT = 4200
USUAL_GATEWAY_PORT = 8080


@dataclass(frozen=True)
class Home:
    """The one directory that holds everything the embedded stack writes."""

    path: Path

    @property
    def stack_file(self) -> Path:
        """The settings of the stack, and its keys."""
        return self.path / "stack.json"

    @property
    def lock_file(self) -> Path:
        """Whoever starts or ends the stack holds it."""
        return self.run / "lock"

    def refuse_others(self) -> None:
        """Refused where another user may write: what lies here says what this one runs, and where it sends keys."""
        if not self.path.exists():
            return
        for path in (self.path, *self.path.iterdir()):
            known = path.lstat()
            if known.st_uid != os.getuid():
                raise Refused(
                    f"{path} belongs to the user {_name_of(known.st_uid)}; run this as that user, or name a directory "
                    f"of your own with --data"
                )
            if known.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not path.is_symlink():
                raise Refused(
                    f"others may write to {path}; if all in it is yours, run: chmod go-w {shlex.quote(str(path))}"
                )

    @property
    def run(self) -> Path:
        """Pid files and logs."""
        return self.path / "run"

    @property
    def flow_runs(self) -> Path:
        """What marks the processes of flow runs, which have no pid file; see `blocks.local.processes`."""
        return self.run / "flow-runs"

    @property
    def temporary(self) -> Path:
        """In place of /tmp, where any user may have made a directory that Prefect's workers keep things in."""
        return self.path / "tmp"

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
    store_ports: Ports
    access_key_id: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """What Prefect's API and its UI ask for; empty where an earlier version made the stack, and nothing asks."""

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.ui_port}/api"

    @property
    def api_auth(self) -> str:
        """A user and a password, as Prefect wants to be asked; the UI takes it in one piece."""
        return f"skyferry:{self.api_key}"

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.ui_port}"

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.gateway_port}/v1"

    @property
    def hub_url(self) -> str:
        return f"http://{HOST}:{self.hub_port}"

    @classmethod
    def read(cls, home: Home) -> Self | None:
        home.refuse_others()
        try:
            known = json.loads(home.stack_file.read_text())
            return cls(**{"api_key": "", **known, "store_ports": Ports(**known["store_ports"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError) as error:
            raise Refused(
                f"{home.stack_file} cannot be understood ({type(error).__name__}: {error}): it is damaged, or of a "
                f"later version; put a copy of it back, or name another directory with --data"
            ) from error

    def seaweed(self, home: Home) -> SeaweedFS:
        return SeaweedFS(home.store, self.store_ports, self.access_key_id, self.secret_access_key)

    @classmethod
    def settle(cls, home: Home, ui_port: int | None, gateway_port: int | None) -> Self:
        """For a stack that is about to start: the ports asked for, or else those it had, the usual ones, or free ones.

        Refused where a port that was asked for, or that the store's files are bound to, is taken.
        """
        for name, port in (("ui", ui_port), ("gateway", gateway_port)):
            if port is not None and not is_free(HOST, port):
                raise Refused(
                    f"port {port} on {HOST} is in use{by_whom(port)}; free it, or choose another with --{name}-port"
                )
        if ui_port is not None and ui_port == gateway_port:
            raise Refused(f"--ui-port and --gateway-port are both {ui_port}; choose another for one of them")
        had = cls.read(home)
        for port in asdict(had.store_ports).values() if had else ():
            if not is_free(HOST, port):
                raise Refused(
                    f"port {port} on {HOST} is in use{by_whom(port)}, and the store in {home.store} needs it; free it"
                )
        ui = ui_port or _free_of(had and had.ui_port, USUAL_UI_PORT)
        gateway = gateway_port or _free_of(had and had.gateway_port, USUAL_GATEWAY_PORT)
        hub = _free_of(had and had.hub_port)
        if had is None:
            settled = cls(ui, gateway, hub, Ports.free())
        else:
            key = had.api_key or secrets.token_urlsafe(24)
            settled = replace(had, ui_port=ui, gateway_port=gateway, hub_port=hub, api_key=key)
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(home.stack_file, json.dumps(asdict(settled), indent=1))
        return settled


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _free_of(*wished: int | None) -> int:
    return next((port for port in wished if port is not None and is_free(HOST, port)), None) or free_port()
