"""SeaweedFS on loopback: the object store of the embedded stack, and of the tests."""

import json
import sysconfig
import time
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from blocks.errors import Unavailable
from blocks.files import write_private
from blocks.local.processes import free_port
from blocks.stores.s3 import S3Store

BUCKET = "skyferry"
HOST = "127.0.0.1"
LIFE = timedelta(days=36_500)
"""Of the certificate that its servers know each other by: nobody else trusts it, and nothing would renew it."""
INNER_SERVERS = ("master", "volume", "filer")
GRPC_SERVERS = (*INNER_SERVERS, "s3", "client")


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
    """One server; `blocks.local.processes.Daemon` runs its command."""

    directory: Path
    ports: Ports
    access_key_id: str
    secret_access_key: str

    @property
    def identities_file(self) -> Path:
        return self.directory / "identities.json"

    @property
    def security_directory(self) -> Path:
        """SeaweedFS finds security.toml in it, and the certificate and key that its servers know each other by."""
        return self.directory / "security"

    @property
    def store(self) -> S3Store:
        return S3Store.model_validate(
            {
                "bucket": BUCKET,
                "endpoint_url": f"http://{HOST}:{self.ports.s3}",
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
            }
        )

    def prepare(self) -> None:
        """Make the directory and write who may ask, for this user's eyes only."""
        self.directory.mkdir(parents=True, exist_ok=True)
        key = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        identity = {"name": BUCKET, "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
        write_private(self.identities_file, json.dumps({"identities": [identity]}))
        self._close_inner_ports()

    def _close_inner_ports(self) -> None:
        """The keys of S3 guard one port: all others take TLS only, from whoever has this certificate's key.

        One certificate, its own authority, for servers and clients; made once, as a running server has read it.
        """
        home = self.security_directory
        home.mkdir(exist_ok=True, mode=0o700)
        certificate, key = home / "store.crt", home / "store.key"
        if not (certificate.exists() and key.exists()):
            made, private = _self_signed(datetime.now(UTC))
            write_private(key, private)
            write_private(certificate, made)
        pair, ca = {"cert": str(certificate), "key": str(key)}, {"ca": str(certificate)}
        tables = {
            "grpc": ca,
            **{f"grpc.{name}": pair for name in GRPC_SERVERS},
            **{f"https.{name}": pair | ca for name in INNER_SERVERS},
            "https.client": {"enabled": True} | pair | ca,
        }
        # What JSON writes of strings and of true is TOML as well.
        lines = [
            line
            for table, entries in tables.items()
            for line in (f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in entries.items()))
        ]
        write_private(home / "security.toml", "\n".join(lines) + "\n")

    def command(self) -> list[str]:
        ports = self.ports
        return [
            "env",
            f"--chdir={self.directory}",  # where its sockets are: a whole path may be too long for one
            "GOMEMLIMIT=400MiB",  # else an upload of a gigabyte makes it 800 MiB large, for no more speed
            f"{sysconfig.get_path('scripts')}/weed",
            f"-config_dir={self.security_directory}",
            "server",
            f"-dir={self.directory}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
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
            "-filer.localSocket=filer.sock",  # in /tmp, whoever had that name first would keep it from starting
            "-s3",
            f"-s3.port={ports.s3}",
            f"-s3.port.grpc={ports.s3_grpc}",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",  # a second interface on the port of S3, of which nothing here makes use
            "-s3.autoCreateBucket=false",
            f"-s3.config={self.identities_file}",
        ]

    def remove_sockets(self) -> None:
        """What it leaves behind where it is killed, in this place whatever TMPDIR says; nobody else's."""
        for port in astuple(self.ports):
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - SeaweedFS chose it
                with suppress(OSError):
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


def _self_signed(now: datetime) -> tuple[str, str]:
    """A certificate for loopback that vouches for itself alone, and its private key; both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Skyferry's embedded store")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
