"""A SkyPilotFleet in the Slurm lab."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from blocks.ports.market import Offer
from blocks.ports.store import MANIFEST
from blocks.replica_tls import Authority
from blocks.skypilot.clusters import SkyPilot
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.s3 import S3Store
from tests.live.slurm_lab import CLUSTERS, REPLICA_PORTS, SlurmLab
from tests.mirroring import manifest_of_nothing

ECHO = """
resources: {cpus: 1, memory: 1}
run: |
  echo "$SKYFERRY_REPLICA is served at port $SKYFERRY_PORT"
  touch health
  exec python3 -c '
  import http.server, os, ssl
  place = ("127.0.0.1", int(os.environ["SKYFERRY_PORT"]))
  server = http.server.ThreadingHTTPServer(place, http.server.SimpleHTTPRequestHandler)
  if "SKYFERRY_CERTIFICATE" in os.environ:
      os.umask(0o077)
      for file, value in (("cert", "SKYFERRY_CERTIFICATE"), ("key", "SKYFERRY_PRIVATE_KEY")):
          open(file, "w").write(os.environ[value])
      tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
      tls.load_cert_chain("cert", "key")
      server.socket = tls.wrap_socket(server.socket, server_side=True)
  server.serve_forever()
  '
"""
"""A task that is ready at once and serves what lies where it starts: that it is healthy, and no more."""


def offer_in(cluster: str, accelerators: int = 1) -> Offer:
    return Offer(
        cell=f"slurm/{cluster}",
        accelerator=CLUSTERS[cluster].accelerator,
        accelerators=accelerators,
        accelerator_gib=24,
        host_gib=16,
        use_spot=False,
        dollars_per_hour=0.7 * accelerators,
    )


def publish_nothing(store: S3Store, prefix: str) -> None:
    """A whole mirror without files."""
    store.put(prefix + MANIFEST, manifest_of_nothing(prefix), replacing=None)


@contextmanager
def skypilot_fleet(
    directory: Path, store: S3Store, lab: SlurmLab, authority: Authority | None = None
) -> Iterator[SkyPilotFleet]:
    """No replica is left at the end."""
    fleet = SkyPilotFleet(
        directory=directory,
        store=store,
        task=ECHO,
        authority=authority,
        slurm_first_port=REPLICA_PORTS.start,
        slurm_last_port=REPLICA_PORTS.stop - 1,
        refresh_seconds=1,
        # With it SkyPilot asks the node before all that it does. Whole releases have it.
        autodown_minutes=None,
        launch_timeout_seconds=240,
    )
    try:
        yield fleet
    finally:
        stop_all()
        assert {**lab.queue("alpha"), **lab.queue("beta")} == {}


def stop_all() -> None:
    """Whoever's they are."""
    skypilot = SkyPilot()
    with ThreadPoolExecutor() as pool:
        list(pool.map(skypilot.down, [cluster.name for cluster in skypilot.clusters()]))
