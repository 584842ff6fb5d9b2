"""What belongs into a mirror, what is missing of it, and in which pieces does it come?"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from blocks.errors import Refused
from blocks.on_machine.node import LARGEST_FILE_BYTES, SHA256, fault_of_paths
from blocks.ports.hub import Model, ModelFile
from blocks.ports.store import MultipartUpload, PartLimits, StoredObject
from blocks.stores.mirrors import LONGEST_KEY_BYTES, fault_of_name, mirror_prefix
from flows.policy.mirrors import weights

MIB = 1 << 20
PART_BYTES = 24 * MIB
"""Each part costs milliseconds whatever its size; four workers' buffers and the process stay below 256 MiB."""


def what_is_there(files: Iterable[ModelFile], objects: Iterable[StoredObject], prefix: str) -> frozenset[str]:
    """The paths of large files at which something of the right size lies: to be read back before it is believed.

    Small files come again: only reading them from the hub gives the sha256 that the manifest needs.
    """
    sizes = {stored.key: stored.size_bytes for stored in objects}
    return frozenset(
        file.path for file in files if file.sha256 is not None and sizes.get(prefix + file.path) == file.size_bytes
    )


@dataclass(frozen=True)
class Selection:
    """What of a model is mirrored, and what is not and why."""

    files: tuple[ModelFile, ...]
    left_out: tuple[tuple[str, str], ...]
    """Path and reason."""
    code: tuple[str, ...] = ()
    """What of it is code that an engine may be told to run; somebody has asked for it."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def what_to_mirror(
    model: Model,
    *,
    allow: Sequence[str] = (),
    ignore: Sequence[str] = (),
    pickle_weights: bool = False,
    python_code: bool = False,
) -> Selection:
    """The files that match `allow` (none: every one) and not `ignore`, without what runs code when it is loaded.

    Pickles that others of the files stand in for are left out, and so is code, unless they are asked for. Weights that
    are pickles and that nothing stands in for are Refused; so are a selection of nothing, and files that no store and
    no machine can hold as the hub describes them.
    """
    files, left_out = list[ModelFile](), list[tuple[str, str]]()
    for file in model.files:
        if allow and not _matches(file.path, allow):
            left_out.append((file.path, "not among the patterns allowed"))
        elif _matches(file.path, ignore):
            left_out.append((file.path, "among the patterns ignored"))
        else:
            files.append(file)
    code = tuple(file.path for file in files if weights.is_code(file.path))
    if not python_code:
        left_out += [(path, "code, which nobody asked for (python_code)") for path in code]
        files = [file for file in files if not weights.is_code(file.path)]
    if not pickle_weights:
        dispensable = weights.what_stands_in([file.path for file in files])
        if needed := [path for path, reason in dispensable.items() if reason is None]:
            raise Refused(
                f"{model.repo} has weights only as pickles, or as other files that run code when they are loaded: "
                f"{', '.join(needed)}; choose a revision with safetensors, ignore them if no engine of yours loads "
                f"them, or set pickle_weights"
            )
        left_out += [(path, reason) for path, reason in dispensable.items() if reason is not None]
        files = [file for file in files if file.path not in dispensable]
    if not files:
        raise Refused(f"nothing of the {len(model.files)} files of {model.repo} is left to mirror; change the patterns")
    return Selection(_checked(model, files), tuple(left_out), code if python_code else ())


COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
"""Git's names for commits: of sha1, or of sha256."""


def _checked(model: Model, files: Sequence[ModelFile]) -> tuple[ModelFile, ...]:
    """With hashes as they are compared; Refused before anything of what a hub says becomes a key or a path."""
    if COMMIT.fullmatch(model.commit) is None:
        raise Refused(f"the hub calls {model.commit!r} the commit of {model.repo}, and it is none; use another hub")
    prefix = mirror_prefix(model.repo, model.commit)
    for file in files:
        if (fault := _fault(file, prefix)) is not None:
            raise Refused(f"{file.path!r} of {model.repo} {fault}; ignore it, or ask the hub's owner")
    if (fault := fault_of_paths(file.path for file in files)) is not None:
        raise Refused(f"{fault} in {model.repo}; ask the hub's owner")
    return tuple(
        replace(file, sha256=None if file.sha256 is None else file.sha256.lower(), git_sha1=file.git_sha1.lower())
        for file in files
    )


def _fault(file: ModelFile, prefix: str) -> str | None:
    if (fault := fault_of_name(file.path)) is not None:
        return fault
    if len((prefix + file.path).encode()) > LONGEST_KEY_BYTES:
        return f"would have a key of more than {LONGEST_KEY_BYTES} bytes, which is the most that stores take"
    if type(file.size_bytes) is not int or not 0 <= file.size_bytes <= LARGEST_FILE_BYTES:
        return f"has {file.size_bytes!r} bytes, where a file has up to {LARGEST_FILE_BYTES}"
    if file.sha256 is not None and re.fullmatch(SHA256, file.sha256.lower()) is None:
        return f"has the sha256 {file.sha256!r}, which is none"
    if file.sha256 is None and COMMIT.fullmatch(file.git_sha1.lower()) is None:
        return f"has the git sha1 {file.git_sha1!r}, which is none"
    return None


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

    go_on: tuple[MultipartUpload, ...]
    abort: tuple[MultipartUpload, ...]


def what_to_resume(unfinished: Iterable[MultipartUpload], missing: Collection[str]) -> Resumption:
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
