"""SeaweedFS on loopback: the object store of the embedded stack, and of the tests."""

import json
import os
import sysconfig
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from blocks.errors import Unavailable
from blocks.processes import free_port
from blocks.s3 import S3Store

BUCKET = "skyferry"


@dataclass(frozen=True)
class Ports:
    """Every port that SeaweedFS listens on; keep them over restarts, because it names its master's files by them."""

    s3: int
    s3_grpc: int
    filer: int
    filer_grpc: int
    volume: int
    volume_grpc: int
    master: int
    master_grpc: int

    @classmethod
    def free(cls) -> "Ports":
        return cls(*(free_port() for _ in fields(cls)))


@dataclass(frozen=True)
class SeaweedFS:
    """One server; `blocks.processes.Daemon` runs its command."""

    directory: Path
    ports: Ports
    access_key_id: str
    secret_access_key: str

    @property
    def identities_file(self) -> Path:
        return self.directory / "identities.json"

    @property
    def store(self) -> S3Store:
        return S3Store.model_validate(
            {
                "bucket": BUCKET,
                "endpoint_url": f"http://127.0.0.1:{self.ports.s3}",
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
            }
        )

    def prepare(self) -> None:
        """Make the directory and write who may ask, for this user's eyes only."""
        self.directory.mkdir(parents=True, exist_ok=True)
        key = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        identity = {"name": BUCKET, "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
        self.identities_file.unlink(missing_ok=True)
        opened = os.open(self.identities_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w") as file:
            json.dump({"identities": [identity]}, file)

    def command(self) -> list[str]:
        ports = self.ports
        return [
            "env",
            "GOMEMLIMIT=400MiB",  # else an upload of a gigabyte makes it 800 MiB large, for no more speed
            f"{sysconfig.get_path('scripts')}/weed",
            "server",
            f"-dir={self.directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports.master}",
            f"-master.port.grpc={ports.master_grpc}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # a restart is ready after 3 seconds, not after 18: nobody else stands
            "-master.volumeSizeLimitMB=256",  # it takes room in these steps: a small disk has enough of them
            f"-volume.port={ports.volume}",
            f"-volume.port.grpc={ports.volume_grpc}",
            "-volume.max=0",  # as many volumes as fit on the disk
            "-volume.preStopSeconds=0",
            f"-filer.port={ports.filer}",
            f"-filer.port.grpc={ports.filer_grpc}",
            "-s3",
            f"-s3.port={ports.s3}",
            f"-s3.port.grpc={ports.s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.config={self.identities_file}",
        ]

    def remove_sockets(self) -> None:
        """What it leaves behind where it is killed, in this place whatever TMPDIR says."""
        for port in astuple(self.ports):
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - SeaweedFS chose it
                socket.unlink()

    def wait_until_ready(self, timeout_seconds: float = 60) -> None:
        """Return once the bucket is there and takes an object; Unavailable after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                self.store.create_bucket()
                self.store.write("probe/ready", b"1")
                return self.store.delete("probe/ready")
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)
