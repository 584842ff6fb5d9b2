"""What belongs into a mirror, what is missing of it, and in which pieces does it come?"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict

from blocks.errors import Refused
from blocks.ports import MANIFEST, Model, ModelFile, PartLimits, StoredObject, Unfinished

MIB = 1 << 20
PART_BYTES = 24 * MIB
"""Each part costs milliseconds whatever its size; four workers' buffers and the process stay below 256 MiB."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
"""Loading such weights runs whatever code somebody has put into them."""


class MirroredFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int
    sha256: str


def as_mirrored(file: ModelFile) -> MirroredFile:
    """A file whose sha256 the hub knows."""
    if file.sha256 is None:
        raise ValueError(f"the hub has no sha256 of {file.path}; only reading it gives one")
    return MirroredFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)


class Manifest(BaseModel):
    """What a mirror holds; written last, it is the only sign that the mirror exists."""

    model_config = ConfigDict(frozen=True)

    repo: str
    commit: str
    license: str | None
    files: tuple[MirroredFile, ...]
    source: str
    mirrored_at: datetime
    tool: str

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def holds(self, files: Iterable[ModelFile]) -> bool:
        """Is everything of this there?"""
        paths = {file.path for file in self.files}
        return all(file.path in paths for file in files)

    def joined_with(self, standing: "Manifest") -> "Manifest":
        """Both, where a mirror is made larger by files that an earlier run left out; Refused where they differ."""
        ours = {file.path: file for file in self.files}
        theirs = {file.path: file for file in standing.files}
        if differ := sorted(path for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]):
            raise Refused(
                f"a manifest of {standing.repo} at {standing.commit} stands already and says otherwise of "
                f"{', '.join(differ)}; delete that mirror first"
            )
        return self.model_copy(update={"files": tuple(file for _, file in sorted({**theirs, **ours}.items()))})


def what_to_copy(files: Iterable[ModelFile], there: Iterable[StoredObject], prefix: str) -> tuple[ModelFile, ...]:
    """The files that are not in the store yet, largest first.

    An object exists only once its hash was right, so a large file of the right size is there. Small files come again:
    only reading them gives the sha256 that the manifest needs.
    """
    sizes = {stored.key: stored.size_bytes for stored in there}
    missing = [file for file in files if file.sha256 is None or sizes.get(prefix + file.path) != file.size_bytes]
    return tuple(sorted(missing, key=lambda file: -file.size_bytes))


@dataclass(frozen=True)
class Selection:
    """What of a model is mirrored, and what is not and why."""

    files: tuple[ModelFile, ...]
    left_out: tuple[tuple[str, str], ...]
    """Path and reason."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def what_to_mirror(
    model: Model, *, allow: Sequence[str] = (), ignore: Sequence[str] = (), pickle_weights: bool = False
) -> Selection:
    """The files that match `allow` (none: every one) and not `ignore`, without pickles.

    Pickles beside safetensors are left out, for those hold the same weights. A model whose only weights are pickles is
    Refused, unless `pickle_weights` asks for them; so is a selection of nothing.
    """
    files, left_out = list[ModelFile](), list[tuple[str, str]]()
    for file in model.files:
        if allow and not _matches(file.path, allow):
            left_out.append((file.path, "not among the patterns allowed"))
        elif _matches(file.path, ignore):
            left_out.append((file.path, "among the patterns ignored"))
        else:
            files.append(file)
    pickles = [file for file in files if file.sha256 is not None and file.path.endswith(PICKLES)]
    if pickles and not pickle_weights:
        if not any(file.path.endswith((".safetensors", ".gguf")) for file in files):
            raise Refused(
                f"{model.repo} has its weights only as pickles, which run code when they are loaded: "
                f"{', '.join(file.path for file in pickles)}; choose a revision with safetensors, or set pickle_weights"
            )
        files = [file for file in files if file not in pickles]
        left_out += [(file.path, "a pickle, and there are safe weights") for file in pickles]
    if not files:
        raise Refused(f"nothing of the {len(model.files)} files of {model.repo} is left to mirror; change the patterns")
    if any(file.path == MANIFEST for file in files):
        raise Refused(f"{model.repo} has a file {MANIFEST}, which is the name of the mirror's manifest; ignore it")
    return Selection(tuple(files), tuple(left_out))


def part_bytes(size_bytes: int, limits: Iterable[PartLimits]) -> int:
    """How large the parts of a file are, in whole MiB: the same in each run, so that one can go on with another's.

    24 MiB, or as much more as the store with the fewest parts needs; Refused where a store takes no such part.
    """
    wanted = PART_BYTES
    for limit in limits:
        wanted = max(wanted, limit.smallest_bytes, -(-size_bytes // limit.parts))
    wanted = -(-wanted // MIB) * MIB
    for limit in limits:
        if min(size_bytes, wanted) > limit.largest_bytes:
            raise Refused(
                f"a file of {size_bytes} bytes needs parts of {wanted} where a store takes {limit.largest_bytes} at "
                f"most, in {limit.parts} parts; mirror a model with smaller files"
            )
    return wanted


@dataclass(frozen=True)
class Resumption:
    """What becomes of the uploads that somebody left."""

    go_on: tuple[Unfinished, ...]
    abort: tuple[Unfinished, ...]


def what_to_resume(unfinished: Iterable[Unfinished], missing: Collection[str]) -> Resumption:
    """Go on with the newest upload of each missing key; older ones of it, and those of objects that are there, end.

    Uploads of other keys are left alone: a run that mirrors other files of the model may be at them.
    """
    newest = {upload.key: upload for upload in sorted(unfinished, key=lambda upload: upload.started_at)}
    return Resumption(
        go_on=tuple(upload for upload in newest.values() if upload.key in missing),
        abort=tuple(upload for upload in unfinished if upload.key in missing and upload != newest[upload.key]),
    )


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """As on the hub: `*.json` matches in folders too, and `folder/` everything below."""
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


@dataclass(frozen=True)
class EgressPrice:
    """What a cloud asks for bytes that leave it for the internet: the list price of the first terabytes of a month."""

    cloud: str
    dollars_per_gb: float
    source: str
    """Where it was read, and of when it is."""


EGRESS_PRICES = (
    EgressPrice("aws", 0.09, "https://www.egresscost.com/aws, 2026; above 100 GB a month"),
    EgressPrice(
        "gcp", 0.12, "https://cloud.google.com/vpc/network-pricing, premium tier, as of 2026-09-20; by the GiB"
    ),
    EgressPrice("azure", 0.087, "https://cloudtoolstack.com/blog/cloud-egress-cost-optimization, early 2026"),
    EgressPrice("cloudflare", 0.0, "https://developers.cloudflare.com/r2/pricing/, as of 2026-08-03"),
)
"""Of public pages, not all of them the clouds' own; into a cloud, bytes are free. Whoever pays other rates says so."""


def traffic_words(size_bytes: int, dollars_per_gb: float | None) -> str:
    """What it costs to bring so many bytes into one store, at the rate of whoever pays, or at list prices."""
    free = "nothing into a store of the cloud that this worker runs in, or from outside any"
    if dollars_per_gb is not None:
        return f"{free}; out of it ${dollars_per_gb * size_bytes / 1e9:.2f} a store, at your ${dollars_per_gb:g} per GB"
    prices = ", ".join(f"{price.cloud} ${price.dollars_per_gb * size_bytes / 1e9:.2f}" for price in EGRESS_PRICES)
    return f"{free}; at list prices, a store, out of {prices}"
