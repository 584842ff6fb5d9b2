"""HAProxy as the gateway, with the admin commands of `deployments/haproxy/admin.lua`."""

import re
import socket
import ssl
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from blocks.engines.answers import GENERATING
from blocks.errors import Refused, Unavailable
from blocks.fields import PrivateKey
from blocks.http.addresses import canonical
from blocks.ports.engine import pace_ms
from blocks.ports.gateway import Outcome, Reading, RequestKind, Server, Slot, Split

TIMEOUT_SECONDS = 10

OUT_OF_TURN = 64
"""HAProxy's threads number their log lines together, so the first line need not have the lowest number."""


class HAProxyGateway(Block):
    """HAProxy in front of all replicas, reached over its admin connection and nothing else."""

    _block_type_name = "HAProxy Gateway"
    _block_type_slug = "haproxy-gateway"
    model_config = ConfigDict(hide_input_in_errors=True)

    admin_socket: Path | None = Field(
        default=None,
        title="Admin socket",
        description="The path of admin.sock in the gateway's run directory, where flows run on the gateway's host.",
    )
    admin_address: str | None = Field(
        default=None,
        pattern=r"^[^\s@/]+:\d+$",
        title="Admin address",
        description="The host:port of the gateway's mutual-TLS admin front end, where flows run on another host.",
    )
    client_certificate: str | None = Field(
        default=None,
        title="Client certificate",
        description="The certificate, in PEM, that the gateway asks of whoever calls the admin address.",
    )
    client_key: PrivateKey = Field(
        default=None, title="Client key", description="The private key, in PEM, of the client certificate."
    )
    ca_certificate: str | None = Field(
        default=None,
        title="CA certificate",
        description="The certificate authority, in PEM, that vouches for the gateway at the admin address.",
    )

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.admin_socket is None) == (self.admin_address is None):
            raise ValueError("give either admin_socket or admin_address, and not both")
        for name in ("client_certificate", "client_key", "ca_certificate"):
            if (getattr(self, name) is None) != (self.admin_address is None):
                raise ValueError(f"admin_address and {name} go together: give both or neither")
        return self

    def split(self, service: str) -> Split:
        return Split(int(self._say("split", service)))

    def set_split(self, service: str, split: Split) -> None:
        self._say("split", service, str(split.green_basis_points))
        if (stands := self.split(service)) != split:
            raise Unavailable(f"{service} has {stands} in spite of being told {split}; try again")

    def servers(self, service: str) -> tuple[Server, ...]:
        return tuple(_server(line) for line in self._say("servers", service).splitlines())

    def attach(self, service: str, slot: Slot, address: str, *, is_tls: bool) -> None:
        address = canonical(address)
        self._say("attach", service, slot, address, "tls" if is_tls else "plain")
        self._check(service, slot, address, {"up", "down"})

    def set_key(self, service: str, slot: Slot, key: str | None) -> None:
        """The gateway itself sees to it that the key stands before it says so."""
        if key is not None and not re.fullmatch(r"[\w.-]+", key):
            raise Refused(f"the key for {slot} of {service} has other characters than letters, digits and . - _")
        self._say("key", service, slot, secret=key)

    def drain(self, service: str, slot: Slot, address: str) -> None:
        address = canonical(address)
        self._say("drain", service, slot, address)
        self._check(service, slot, address, {"draining"})

    def detach(self, service: str, slot: Slot, address: str) -> None:
        address = canonical(address)
        self._say("detach", service, slot, address)
        self._check(service, slot, address, {None})

    def requests(self, service: str, after: str | None) -> Reading:
        # Refused, with the services that there are, where this is none of them: the log itself would not say.
        self._say("split", service)
        # Before the log, so that a reload in between shows as a gap and never hides one.
        worker = self._ask("get var proc.boot").partition("<")[2].partition(">")[0]
        return read_log(self._ask(f"show events {service}"), worker, after)

    def _check(self, service: str, slot: Slot, address: str, wanted: set[str | None]) -> None:
        states = {(server.slot, server.address): server.state for server in self.servers(service)}
        if (state := states.get((slot, address))) not in wanted:
            raise Unavailable(f"{address} in {slot} of {service} is {state} in spite of being told; try again")

    def _say(self, verb: str, *words: str, secret: str | None = None) -> str:
        """The secret is said as the last word, and stands in no error."""
        for word in words:
            # A semicolon or a line break would begin another command.
            if not re.fullmatch(r"[\w.:\[\]-]+", word):
                raise Refused(f"{word!r} cannot be part of a gateway command; use letters, digits and . : [ ] - _")
        answer = self._ask(" ".join(("skyferry", verb, *words, *([secret] if secret else []))))
        outcome, _, rest = answer.strip().partition("\n")
        if outcome.startswith("again "):
            raise Unavailable(f"the gateway at {self._where} to {verb}: {outcome}")
        if outcome != "ok":
            said = f"the gateway at {self._where} to {verb} {' '.join(words)}: {outcome} {rest}".strip()
            # A gateway that does not know the verb may quote it all.
            raise Refused(said.replace(secret, "(the key)") if secret else said)
        return rest

    @property
    def _where(self) -> str:
        return str(self.admin_socket or self.admin_address)

    def _ask(self, command: str) -> str:
        try:
            with self._connect() as connection:
                connection.sendall(f"{command}\n".encode())
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        except ssl.SSLEOFError:
            raise Unavailable(f"the gateway at {self._where} broke off; try again") from None
        except ssl.SSLError as error:
            raise Refused(f"the gateway at {self._where} and this block's certificates do not fit: {error}") from None
        except OSError as error:
            raise Unavailable(f"no connection to the gateway at {self._where}: {error}; is it running?") from None
        if not answer.endswith("\n\n") and answer != "\n":
            raise Unavailable(f"the gateway at {self._where} broke off in the middle of an answer; try again")
        return answer

    def _connect(self) -> socket.socket:
        if self.admin_socket is not None:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(TIMEOUT_SECONDS)
            try:
                connection.connect(str(self.admin_socket))
            except OSError:
                connection.close()
                raise
            return connection
        host, _, port = cast("str", self.admin_address).rpartition(":")
        context = ssl.create_default_context(cadata=self.ca_certificate)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:  # readable by this user only
            pem.write(f"{self.client_certificate}\n{cast('SecretStr', self.client_key).get_secret_value()}\n")
            pem.flush()
            context.load_cert_chain(pem.name)
        plain = socket.create_connection((host, int(port)), TIMEOUT_SECONDS)
        try:
            return context.wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise


def _server(line: str) -> Server:
    slot, address, state, in_flight = line.split()
    return Server(
        slot=cast("Slot", slot),
        address=address,
        state=cast("Literal['up', 'down', 'draining']", state),
        in_flight=int(in_flight),
    )


def _none_for_dash(value: object) -> object:
    return None if value == "-" else value


def _other_for_dash(value: object) -> object:
    return "other" if value == "-" else value


class LogLine(BaseModel, frozen=True):
    """One line of the gateway's request log, as `haproxy.cfg.j2` writes it; times in milliseconds."""

    id: str
    number: int = Field(alias="n")
    """Counts the service's requests since this worker of HAProxy started."""
    accepted: float
    idle: int
    backend: str = Field(alias="be")
    server: str = Field(alias="srv")
    ip: str
    port: str
    status: int
    end: str = Field(min_length=2, max_length=2)
    """HAProxy's termination state: who ended it and in which phase."""
    retries: str
    """With a plus in front where another server got it."""
    unanswered: Annotated[str | None, BeforeValidator(_none_for_dash)]
    """Where neither slot nor anybody else had an answer, and HAProxy gave its own."""
    active: int = Field(alias="Ta")
    first_token: Annotated[float | None, BeforeValidator(_none_for_dash)] = Field(alias="ttft")
    last_token: Annotated[float | None, BeforeValidator(_none_for_dash)] = Field(default=None, alias="last")
    """This and what has a default below is not in the lines of a gateway that an older Skyferry configured."""
    tokens: Annotated[int | None, BeforeValidator(_none_for_dash)] = None
    amiss: Literal["no", "empty", "cut", "error", "-"] = "-"
    """What the body said, by `answers.lua`: it generated nothing, came to no good end, or ended in an error."""
    error_status: Annotated[int | None, BeforeValidator(_none_for_dash)] = Field(default=None, alias="error")
    kind: Annotated[RequestKind | None, BeforeValidator(_other_for_dash)] = None
    """None where it is not told; a dash where what came was no request that could be read."""
    repeat: Literal["1", "-"] = "-"
    whole: Literal["1", "-"] | None = None
    """Whether all of the answer has come; None where it is not told."""
    user: Annotated[str | None, BeforeValidator(_none_for_dash)]

    @property
    def outcome(self) -> Outcome:
        who, phase = self.end
        # Phase D is the answer's body. Before it, HAProxy logs a status that a user who had left never got. And who
        # goes as soon as a stream has said that it is over has missed nothing.
        had_it_all = self.kind in GENERATING and phase in "D-" and self.tokens is not None and self.amiss == "no"
        # An answer that tells no length, as to a user of HTTP/1.0, ends with its connection: there HAProxy takes a user
        # who goes for a good end.
        went_unseen = (
            self.end == "--" and self.whole == "-" and self.kind in GENERATING and self.status < HTTPStatus.BAD_REQUEST
        )
        user_left = (who in "Cc" or went_unseen) and not had_it_all
        status = -1 if user_left and phase not in "D-" else self.status
        answered = status != -1 and self.unanswered is None
        reached = re.fullmatch(r"[rt]\d+", self.server) is not None and phase not in "QC"
        _, _, slot = self.backend.rpartition("-")
        # A request that is no HTTP, though that showed only in the middle of it, is refused by HAProxy and by no slot.
        if who == "P" and HTTPStatus.BAD_REQUEST <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR and phase != "D":
            slot = ""
        is_answer = answered and status < HTTPStatus.BAD_REQUEST
        error_status = self.error_status if is_answer and self.amiss == "error" else None
        is_refusal = error_status is not None and error_status < HTTPStatus.INTERNAL_SERVER_ERROR
        is_bad_end = is_answer and (self.amiss == "error" or (self.amiss == "cut" and not user_left))
        cut_short = (phase == "D" and who not in "-Cc") or (is_bad_end and not is_refusal)
        return Outcome(
            id=self.id,
            at=self.accepted + max(self.idle, 0) / 1000,
            slot=slot if slot in ("blue", "green") else None,
            address=(f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}") if reached else None,
            status=status,
            first_token_ms=self.first_token if is_answer else None,
            tokens=self.tokens if is_answer else None,
            per_token_ms=pace_ms(self.first_token, self.last_token, self.tokens) if is_answer else None,
            total_ms=float(self.active),
            user=self.user,
            retried=self.retries.lstrip("+") != "0",
            by_fallback=answered and self.server.startswith("to_"),
            cut_short=cut_short,
            is_empty=is_answer and self.amiss == "empty" and not cut_short and not user_left,
            user_left=user_left,
            # A gateway that does not say what was asked had all of it judged alike.
            kind=self.kind or "chat",
            is_repeat=self.repeat == "1",
            error_status=error_status,
        )


def read_line(line: str) -> LogLine | None:
    """None for what is no whole log line of a request."""
    try:
        return LogLine.model_validate_json(line)
    except ValidationError:
        return None


def read_log(text: str, worker: str, after: str | None) -> Reading:
    """What the log of one service says since the cursor: a request's id, or the worker while it had logged none.

    A request that cannot be read is one that is missing. HAProxy's own messages are no requests: they have words where
    our lines have a brace, and nothing in them is a user's or a replica's.
    """
    newer: list[LogLine] = []
    seen = False
    is_readable = True
    for text_line in reversed(text.splitlines()):
        if (line := read_line(text_line)) is None:
            is_readable = is_readable and not text_line.startswith("{")
            continue
        if line.id == after:
            seen = True
            break
        newer.append(line)
        if after is None:
            break
    newer.reverse()
    cursor = newer[-1].id if newer else after if seen and after is not None else worker
    if after is None:
        return Reading(outcomes=(), cursor=cursor, is_complete=True)
    from_the_start = after == worker and (not newer or newer[0].number < OUT_OF_TURN)
    return Reading(
        outcomes=tuple(line.outcome for line in newer),
        cursor=cursor,
        is_complete=is_readable and (seen or from_the_start),
    )
