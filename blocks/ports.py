"""What Skyferry asks of the world: small protocols, and the frozen values that cross them.

Every verb raises `Unavailable` where trying again may help and `Refused` where it will not; see `blocks.errors`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

# --- Hubs: where models come from -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFile:
    """One file of a model, with the hashes that the hub vouches for."""

    path: str
    size_bytes: int
    sha256: str | None
    """Of the content, for files in large-file storage; None for small ones, which have only `git_sha1`."""
    git_sha1: str
    """Of git's blob: sha1 over `blob <size>\\0` and the content, which for large-file storage is a pointer's."""


@dataclass(frozen=True)
class Model:
    """A repository pinned to a commit, and all its files."""

    repo: str
    commit: str
    files: tuple[ModelFile, ...]
    license: str | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Hub(Protocol):
    """A place that speaks the Hugging Face Hub's protocol."""

    @property
    def endpoint(self) -> str:
        """Its address, which goes into the manifests of what came from it."""
        ...

    def look_up(self, repo: str, revision: str) -> Model:
        """Pin a branch, tag or commit to its commit; Refused where it does not exist or may not be read."""
        ...

    def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
        """The file's bytes as the hub sends them, unchecked."""
        ...

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the file's bytes from `start` on, unchecked; Unavailable where fewer come."""
        ...


# --- Stores: where mirrors and the ledger live ----------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    body: bytes
    etag: str


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int


MANIFEST = "skyferry-manifest.json"
"""The file below a mirror's prefix that says what it holds; written last, it alone says that the mirror exists."""


class Records(Protocol):
    """Small documents with conditional writes: an ETag says which version a writer has seen."""

    def get(self, key: str) -> Found | None: ...

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        """Write over the version with the ETag `replacing` (None: only where there is none); the new ETag.

        Raises Conflict where another version stands, and Unsupported where the store knows no conditions.
        """
        ...


class Objects(Protocol):
    """Whole objects."""

    def write(self, key: str, body: bytes | memoryview) -> bool:
        """Over whatever stands there; for what fits into memory.

        Whether the store has said that it has these bytes; where it has not, only reading them back tells.
        """
        ...

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, `size_bytes` of them or all; Refused where there is no such object."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]: ...

    def delete(self, key: str) -> None:
        """Gone already is no error."""
        ...

    def url_of(self, key: str) -> str:
        """How an engine or a person names the object: `s3://bucket/key`."""
        ...


@dataclass(frozen=True)
class PartLimits:
    """What a store takes as parts of one object."""

    smallest_bytes: int
    """Of every part but the last."""
    largest_bytes: int
    parts: int
    """So many at most."""


@dataclass(frozen=True)
class Part:
    """One part that a store has."""

    number: int
    """From 1, in the order of the bytes; parts may be sent in any order."""
    size_bytes: int
    receipt: str
    """What the store calls it."""
    checksum: str | None
    """As `Uploads.checksum` has it; None where the store does not say."""
    is_vouched: bool = True
    """Whether the store has said that it has the bytes of that checksum."""


@dataclass(frozen=True)
class Unfinished:
    """An upload that is no object yet."""

    key: str
    id: str
    started_at: float
    """Unix seconds."""


class Uploads(Protocol):
    """Large objects that arrive in parts. What was sent stays, whoever dies, until it is completed or aborted.

    `send`, `sent` and `complete` raise Conflict where the upload, or a part of it, is not what the caller believes:
    look at what stands, and begin anew.
    """

    @property
    def part_limits(self) -> PartLimits: ...

    def checksum(self, body: memoryview) -> str:
        """What this store checks a part by."""
        ...

    def holds(self, part: Part, body: memoryview) -> bool:
        """Does the store say of a part that it is these bytes? False where it does not say."""
        ...

    def begin(self, key: str) -> Unfinished: ...

    def send(self, upload: Unfinished, number: int, body: memoryview) -> Part:
        """The store checks the bytes; a part sent again replaces the one before."""
        ...

    def sent(self, upload: Unfinished) -> tuple[Part, ...]:
        """The parts that are there, by number."""
        ...

    def complete(self, upload: Unfinished, parts: Sequence[Part]) -> None:
        """Make the object of all these parts, each with its checksum; it appears whole or not at all.

        The store, or the block, checks the whole object as well. Conflict also where an object has that key already.
        """
        ...

    def abort(self, upload: Unfinished) -> None:
        """Remove its parts; gone already is no error."""
        ...

    def unfinished(self, prefix: str) -> tuple[Unfinished, ...]:
        """Oldest first."""
        ...


class Copies(Protocol):
    """What a provider copies itself, so that no byte passes through here."""

    def copies_from(self, source: Objects) -> bool:
        """Is the source of the same provider? Says nothing of rights."""
        ...

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        """Over whatever stands there; Refused where the provider may not, or cannot, read the source.

        Whether the provider's checksums of both were compared; where they were not, only reading it back tells.
        """
        ...


class Store(Records, Objects, Uploads, Copies, Protocol):
    """One bucket."""


# --- Markets: what can be rented, where and at which price ----------------------------------------------------------

ON_PROCESSORS = "CPU"
"""What stands for an accelerator's name where a replica is wanted on processors alone."""


def is_within(cell: str, name: str) -> bool:
    """Whether a cell is what is called so, or lies in it, as aws/us-east-1 lies in aws."""
    return cell == name or cell.startswith(name + "/")


def domain_of(cell: str) -> str:
    """What fails together with this cell: its region, Kubernetes cluster or Slurm cluster."""
    return "/".join(cell.split("/")[:2])


@dataclass(frozen=True)
class Offer:
    """One kind of machine that a cell rents out."""

    cell: str
    """As SkyPilot's `infra` has it: `aws/us-east-1`, `aws/us-east-1/us-east-1a`, `k8s/prod`, `slurm/alpha`."""
    accelerator: str
    """L4, A100-80GB; `ON_PROCESSORS` where the machine has none, or none is used."""
    accelerators: int
    """How many of them a replica gets; 0 on processors."""
    accelerator_gib: float
    """The memory of one of them."""
    host_gib: float | None
    """The machine's own memory; None where the cell does not say."""
    use_spot: bool
    dollars_per_hour: float | None
    """None where nobody has named a price: such an offer is shown and never taken."""
    instance: str | None = None
    """The cloud's own name for the machine; None where a cell has no such names."""
    disk_gib: float | None = None
    """What a replica may fill of its disk; None where it gets what it asks for, or nobody knows."""

    @property
    def domain(self) -> str:
        return domain_of(self.cell)

    def __str__(self) -> str:
        machine = f"{self.accelerator}:{self.accelerators}" if self.accelerators else (self.instance or "processors")
        return f"{machine} in {self.cell}{' (spot)' if self.use_spot else ''}"


@dataclass(frozen=True)
class Stock:
    """What a cell says of having an offer now."""

    answer: Literal["free", "none", "unknown", "refused"]
    """`refused`: we may not rent there at all, as without credentials."""
    at: float
    """Unix seconds at which it was said."""
    confidence: float
    """From 0, a guess, to 1, the cell's own count."""
    words: str
    """Who said what: `sinfo: 2 of 4 L4 are free`, `spot placement score 7 of 10`, `the key is refused: …`."""
    replicas: int | None = None
    """How many replicas would fit now; None where the cell does not say."""
    load: float | None = None
    """The share of this kind that is in use, from 0 to 1; None where the cell does not say."""


class Market(Protocol):
    """What can be rented, and what of it is in stock. Nothing here costs anything or needs an account."""

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        """Everything on offer in those cells with those accelerators; an empty list of either allows every one.

        Machines without accelerators are asked for by name, `ON_PROCESSORS`, where there are others: next to them they
        look cheap.

        A cell may be named in part: `aws`, `aws/us-east-1`, `slurm`. Refused where a name is nobody's, saying which
        there are.
        """
        ...

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        """One answer an offer, in their order; what cannot be asked is `unknown`, never an error."""
        ...


# --- Fleets: where replicas run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineSettings:
    """How the engine is started; part of what makes a release the release that it is."""

    context_tokens: int
    """The longest prompt plus answer that one request may have."""
    parallel_requests: int
    """How many requests one replica answers at the same time; further ones wait."""


@dataclass(frozen=True)
class ReplicaOrder:
    """One replica that should exist. The name is derived from the release and a number, so that a retry adopts it."""

    name: str
    service: str
    release: str
    mirror_prefix: str
    """The key prefix of the mirror in the fleet's store, ending in a slash."""
    engine: EngineSettings
    disk_bytes: int = 0
    """What the replica fills of its machine's disk, beside the system; 0 where nobody has worked it out."""


@dataclass(frozen=True)
class Replica:
    """One running copy of the engine."""

    name: str
    service: str
    release: str
    cell: str
    address: str
    """`host:port` of its OpenAI-compatible endpoint, as the gateway reaches it; empty while it has none yet."""
    is_tls: bool = False
    """It speaks TLS, with a certificate that the fleet's authority vouches for, and wants the release's key."""
    launched_at: float | None = None
    """Unix seconds; None where the fleet does not know."""
    dollars_per_hour: float | None = None
    """What it costs; None where the fleet does not know."""


class Fleet(Protocol):
    """Something that runs replicas."""

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        """It, as one installation acts on it: what is another one's is never listed, adopted or stopped.

        `inherited` are releases whose replicas may be from a time when none was marked: these are its own as well.
        Without an installation only what is not marked can be seen and acted on.
        """
        ...

    def launch(self, order: ReplicaOrder, offer: Offer) -> Replica:
        """Start the replica on that offer, or adopt the one of that name wherever it is; it need not be ready yet.

        Raises CellSaidNo, with nothing left there, where the cell cannot or will not give it.
        """
        ...

    def replicas(self, service: str) -> tuple[Replica, ...]:
        """Every replica of the service that exists, of any release."""
        ...

    def stop(self, name: str) -> None:
        """End the replica and see that it is gone; gone already is no error."""
        ...

    def has_ended(self, name: str) -> bool:
        """Whether its engine ended by itself, where it is known that its machine did not: no retry mends that."""
        ...

    def log_tail(self, name: str) -> str:
        """The last lines that the replica printed; empty where there are none."""
        ...

    def key_of(self, release: str) -> str | None:
        """The API key that the release's replicas ask for; None where they ask for none."""
        ...


@dataclass(frozen=True)
class Load:
    """What an engine's page of metrics says, of all its models and ranks together.

    Counters have run since the engine started; None where this engine does not count such a thing.
    """

    running: int
    """Requests that it answers now."""
    waiting: int
    """Requests that wait for their turn."""
    prompt_tokens: float | None = None
    """Read so far."""
    generated_tokens: float | None = None
    timed_tokens: float | None = None
    """Of the generated ones, those that `token_seconds` is the time of."""
    token_seconds: float | None = None
    queued_requests: float | None = None
    """Requests that have begun, after waiting for `queue_seconds` together."""
    queue_seconds: float | None = None
    preemptions: float | None = None
    """Requests that were put back into the queue because others needed their memory."""
    kv_cache: float | None = None
    """How full its cache for keys and values is, from 0 to 1; of several ranks, the fullest."""

    @property
    def in_flight(self) -> int:
        return self.running + self.waiting


@dataclass(frozen=True)
class Prompt:
    """A question that a replica is asked as a test of it, and what its answer has to be."""

    text: str
    max_tokens: int
    expects: Literal["text", "json", "tool"]
    """Anything but nothing; a JSON value; a call of the one tool that is offered, with JSON."""


A_HANDFUL = 5
"""Fewer tokens than this tell no pace."""


def pace_ms(first_token_ms: float | None, last_token_ms: float | None, tokens: int | None) -> float | None:
    """The time per token between the first and the last; None where they are too few to tell."""
    if first_token_ms is None or last_token_ms is None or tokens is None or tokens < A_HANDFUL:
        return None
    return (last_token_ms - first_token_ms) / (tokens - 1)


@dataclass(frozen=True)
class Answer:
    """What came back on a prompt, as far as it came."""

    status: int | None
    """Of HTTP; None where there was no answer at all."""
    text: str = ""
    tool_arguments: str | None = None
    """What the tool was called with; None where it was not."""
    has_thought: bool = False
    """It reasoned, which may have taken all its tokens."""
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    tokens: int = 0
    total_ms: float = 0
    is_whole: bool = False
    """It came to its end, and that was a good one."""
    error_status: int | None = None
    """The HTTP status of the error that the body named under a good status in the head; None where it named none."""


class Engine(Protocol):
    """A replica asked directly, past the gateway."""

    def is_healthy(self, replica: Replica) -> bool:
        """False while it loads, and while nothing answers."""
        ...

    def complete(self, replica: Replica) -> str:
        """One real, short completion; Unavailable where none comes back."""
        ...

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        """Streamed, as users ask; whatever comes, or does not, is an answer and no error."""
        ...

    def load(self, replica: Replica) -> Load | None:
        """None where what runs and waits cannot be known: that counts as busy, and never as good news."""
        ...


# --- Gateways: where users' traffic passes --------------------------------------------------------------------------

Slot = Literal["blue", "green"]
"""One of the two places that a release can stand in behind a service."""


def other(slot: Slot) -> Slot:
    return "blue" if slot == "green" else "green"


WHOLE = 10_000
"""All traffic, in basis points."""


@dataclass(frozen=True)
class Split:
    """Who gets what share of a service's traffic."""

    green_basis_points: int

    def __post_init__(self) -> None:
        if not 0 <= self.green_basis_points <= WHOLE:
            raise ValueError(f"green's share is {self.green_basis_points} basis points; give 0 to {WHOLE}")

    @classmethod
    def giving(cls, slot: Slot, basis_points: int) -> "Split":
        return cls(basis_points if slot == "green" else WHOLE - basis_points)

    def share_of(self, slot: Slot) -> int:
        """In basis points."""
        return self.green_basis_points if slot == "green" else WHOLE - self.green_basis_points


@dataclass(frozen=True)
class Server:
    """A replica as the gateway sees it."""

    slot: Slot
    address: str
    state: Literal["up", "down", "draining"]
    in_flight: int
    """Requests that the gateway has sent there, or holds for it, and that have not ended."""


RequestKind = Literal[
    "chat", "completion", "response", "message", "embedding", "rerank", "score", "transcription", "speech", "other"
]
"""What a request asked for, by its method and path; `other` asks no model: a list of models, a preflight, a mistake."""


@dataclass(frozen=True)
class Outcome:
    """One request as its user saw it."""

    id: str
    at: float
    """Unix seconds at which it was accepted."""
    slot: Slot | None
    """Where the split sent it; None where there was nowhere to send it."""
    address: str | None
    """The replica that answered; None where none of that slot did."""
    status: int
    """The HTTP status that the user got; -1 where the user left first."""
    first_token_ms: float | None
    """None for answers that were not streamed, and for errors."""
    tokens: int | None
    """The events of a streamed answer that said something; None for answers that were not streamed."""
    per_token_ms: float | None
    """Between its first token and its last; None where they are too few to tell."""
    total_ms: float
    user: str | None
    """A hash of the user, never the user."""
    retried: bool
    """It was sent again because the first replica did not answer."""
    by_fallback: bool
    """Another slot or the outside provider answered in place of this one."""
    cut_short: bool
    """The answer began and came to no good end: broken off, without one, or an error that is no refusal."""
    is_empty: bool
    """It ended well, and nothing was generated."""
    user_left: bool
    """The user broke it off: before the answer began where `status` is -1, else in the middle of it, after `tokens`."""
    kind: RequestKind = "chat"
    is_repeat: bool = False
    """The client's SDK sent it again after a failure: the same request, and no other draw of the split."""
    error_status: int | None = None
    """The HTTP status of the error that the body named under a good status in the head; None where it named none."""


@dataclass(frozen=True)
class Reading:
    """What the request log had to say since a cursor."""

    outcomes: tuple[Outcome, ...]
    cursor: str
    """Hand it to the next call."""
    is_complete: bool
    """False where requests may have been logged and lost between the two readings."""


class Router(Protocol):
    def split(self, service: str) -> Split: ...

    def set_split(self, service: str, split: Split) -> None:
        """Returns once the gateway reports that split."""
        ...


class Pool(Protocol):
    def servers(self, service: str) -> tuple[Server, ...]: ...

    def attach(self, service: str, slot: Slot, address: str, *, is_tls: bool) -> None:
        """Send requests of that slot there as well, once it is healthy; attached already is no error."""
        ...

    def set_key(self, service: str, slot: Slot, key: str | None) -> None:
        """Send this key to the slot's replicas in place of what the user sent; with None, what the user sent."""
        ...

    def drain(self, service: str, slot: Slot, address: str) -> None:
        """Send nothing new there; what is in flight goes on."""
        ...

    def detach(self, service: str, slot: Slot, address: str) -> None:
        """Forget the server; forgotten already is no error."""
        ...


class RequestLog(Protocol):
    def requests(self, service: str, after: str | None) -> Reading:
        """The requests that ended since the cursor `after`; with None no requests, only the cursor of now."""
        ...


class Gateway(Router, Pool, RequestLog, Protocol):
    """A gateway in front of all replicas of its services."""
