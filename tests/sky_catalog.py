"""A small catalogue of AWS, GCP and Azure where SkyPilot looks for it, and a market that reads it there.

On-demand prices are the clouds' public list prices of 2025, noted in November 2026; spot prices move by the hour, and
these are examples of their size, unlike in each zone where a test wants that.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from blocks.ports.market import Offer, Stock
from blocks.skypilot.market import SkyPilotMarket

GIB = {"T4": 16, "L4": 24, "A10": 24, "A10G": 24, "A100": 40, "A100-80GB": 80, "H100": 80}

# machine, accelerator and count, processors, GiB, $ an hour, architecture, spot $ by zone
AWS: tuple[tuple[str, str, float, int, float, str, dict[str, float], str], ...] = (
    ("g4dn.xlarge", "T4:1", 4, 16, 0.526, "us-east-1", {"use1-az1": 0.21, "use1-az2": 0.21}, "x86_64"),
    ("g5.xlarge", "A10G:1", 4, 16, 1.006, "us-east-1", {"use1-az1": 0.43, "use1-az2": 0.51}, "x86_64"),
    ("g6.xlarge", "L4:1", 4, 16, 0.8048, "us-east-1", {"use1-az1": 0.31, "use1-az2": 0.36, "use1-az4": 0.33}, "x86_64"),
    ("g6.xlarge", "L4:1", 4, 16, 0.8048, "us-west-2", {"usw2-az1": 0.28, "usw2-az2": 0.28}, "x86_64"),
    ("g6.xlarge", "L4:1", 4, 16, 1.0061, "eu-central-1", {"euc1-az2": 0.40}, "x86_64"),
    ("g6.2xlarge", "L4:1", 8, 32, 0.9776, "us-east-1", {"use1-az1": 0.39, "use1-az2": 0.39}, "x86_64"),
    ("g6.12xlarge", "L4:4", 48, 192, 4.6016, "us-east-1", {"use1-az1": 1.84, "use1-az2": 1.84}, "x86_64"),
    ("g6f.large", "L4:0.125", 2, 8, 0.2024, "us-east-1", {"use1-az1": 0.08}, "x86_64"),
    ("p4d.24xlarge", "A100:8", 96, 1152, 21.9576, "us-east-1", {"use1-az1": 11.1, "use1-az2": 12.4}, "x86_64"),
    ("p4de.24xlarge", "A100-80GB:8", 96, 1152, 27.4471, "us-west-2", {}, "x86_64"),
    ("m6i.large", "", 2, 8, 0.096, "us-east-1", {"use1-az1": 0.035, "use1-az2": 0.035}, "x86_64"),
    ("m6i.xlarge", "", 4, 16, 0.192, "us-east-1", {"use1-az1": 0.07, "use1-az2": 0.07}, "x86_64"),
    ("m7i.xlarge", "", 4, 16, 0.2016, "us-east-1", {"use1-az1": 0.08, "use1-az2": 0.08}, "x86_64"),
    ("m6g.xlarge", "", 4, 16, 0.154, "us-east-1", {"use1-az1": 0.05}, "arm64"),
    ("m6i.xlarge", "", 4, 16, 0.192, "us-west-2", {"usw2-az1": 0.06}, "x86_64"),
)
AWS_ZONE_NAMES = {
    "use1-az1": "us-east-1a",
    "use1-az2": "us-east-1b",
    "use1-az4": "us-east-1c",
    "usw2-az1": "us-west-2a",
}
"""What one account calls its zones; it has not opened eu-central-1."""

# machine, processors, GiB, zones, $ an hour, spot $
GCP_HOSTS = (
    ("g2-standard-4", 4, 16, ("us-central1-a", "us-central1-b", "europe-west4-a"), 0.14679, 0.05872),
    ("g2-standard-8", 8, 32, ("us-central1-a",), 0.29357, 0.11743),
    ("a2-highgpu-1g", 12, 85, ("us-central1-a", "us-central1-b"), 0.73948, 0.36975),
    ("n1-standard-8", 8, 30, ("us-central1-a",), 0.37999, 0.08),
    ("n1-highmem-4", 4, 26, ("us-central1-a",), 0.23661, 0.05),
    ("n2-standard-4", 4, 16, ("us-central1-a", "us-central1-b"), 0.19424, 0.047),
)
GCP_ACCELERATORS = (
    ("L4", 1, ("us-central1-a", "us-central1-b", "europe-west4-a"), 0.56004, 0.22402),
    ("A100", 1, ("us-central1-a", "us-central1-b"), 2.93391, 1.46695),
    ("T4", 1, ("us-central1-a",), 0.35, 0.14),
    ("tpu-v5litepod-1", 1, ("us-central1-a",), 1.2, 0.6),
)

# machine, accelerator and count, processors, GiB, region, $ an hour, spot $
AZURE = (
    ("Standard_NC24ads_A100_v4", "A100-80GB:1", 24, 220, "eastus", 3.673, 1.32),
    ("Standard_NC24ads_A100_v4", "A100-80GB:1", 24, 220, "westeurope", 4.775, 1.71),
    ("Standard_NV36ads_A10_v5", "A10:1", 36, 440, "eastus", 3.2, 0.64),
    ("Standard_NV6ads_A10_v5", "A10:0.167", 6, 55, "eastus", 0.454, 0.09),
    ("Standard_D4s_v5", "", 4, 16, "eastus", 0.192, ""),
)


def seed(home: Path, *, with_zone_names: bool = False) -> None:
    """Write the catalogue where SkyPilot looks for it with that home directory; without md5s, it is never fetched."""
    catalog = home / ".sky" / "catalogs" / "v8"
    _write(
        catalog / "aws" / "vms.csv",
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch",
        (
            (machine, *_accelerator(kind, count), cpus, gib, _info(kind), dollars, spot, region, zone, arch)
            for machine, named, cpus, gib, dollars, region, zones, arch in AWS
            for kind, count in [_split(named)]
            for zone, spot in (zones or {f"{region}-zone": ""}).items()
        ),
    )
    if with_zone_names:
        _write(
            catalog / "aws" / "az_mappings-0123abcd.csv",
            "AvailabilityZone,AvailabilityZoneName",
            AWS_ZONE_NAMES.items(),
        )
    _write(
        catalog / "gcp" / "vms.csv",
        "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice",
        [
            (machine, cpus, gib, "", "", "", zone[:-2], zone, dollars, spot)
            for machine, cpus, gib, zones, dollars, spot in GCP_HOSTS
            for zone in zones
        ]
        + [
            ("", "", "", kind, count, _info(kind), zone[:-2], zone, dollars, spot)
            for kind, count, zones, dollars, spot in GCP_ACCELERATORS
            for zone in zones
        ],
    )
    _write(
        catalog / "azure" / "vms.csv",
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,Generation",
        (
            # Azure's rows do not say the memory in a way that can be read, as the real ones.
            (machine, *_accelerator(kind, count), cpus, gib, "gpu" if kind else "", dollars, spot, region, "V2")
            for machine, named, cpus, gib, region, dollars, spot in AZURE
            for kind, count in [_split(named)]
        ),
    )
    _write(catalog / "common" / "accelerators.csv", "AcceleratorName,Clouds", ((kind, "['AWS']") for kind in GIB))
    _write(
        catalog / "common" / "metadata.csv",
        "GPU,MemoryGB,Manufacturer",
        ((kind, gib, "nvidia") for kind, gib in GIB.items()),
    )


@dataclass(frozen=True)
class MarketAtHome:
    """A market in a process with a home directory of its own: SkyPilot takes it for good when it is imported."""

    process: ProcessPoolExecutor
    market: SkyPilotMarket

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        return self.process.submit(self.market.offers, cells, accelerators).result()

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        return self.process.submit(self.market.stock, offers).result()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Anything else, beside the market."""
        return self.process.submit(function, *arguments).result()


@contextmanager
def process_at(home: Path) -> Iterator[ProcessPoolExecutor]:
    """A process that has that home directory and nobody's credentials."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_move, initargs=(str(home),)) as process:
        yield process


def _move(home: str) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "SKY", "KUBE"))]:
        del os.environ[name]
    os.environ |= {"HOME": home, "AWS_EC2_METADATA_DISABLED": "true", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    os.chdir(home)


def _split(named: str) -> tuple[str, str]:
    kind, _, count = named.partition(":")
    return kind, count


def _accelerator(kind: str, count: str) -> tuple[str, str]:
    return (kind, count) if kind else ("", "")


def _info(kind: str) -> str:
    if kind not in GIB:
        return ""
    memory = GIB[kind] * 1024
    gpu = {"Name": kind, "Manufacturer": "NVIDIA", "Count": 1.0, "MemoryInfo": {"SizeInMiB": memory}}
    return str({"Gpus": [gpu], "TotalGpuMemoryInMiB": memory})


def _write(file: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header.split(","))
        writer.writerows(rows)
