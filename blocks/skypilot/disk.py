"""How large a disk a rented machine is asked for."""

import re
from collections.abc import Mapping
from typing import Any

from blocks.errors import Refused
from blocks.ports.fleet import ReplicaOrder
from blocks.ports.market import Offer

GIB = 1 << 30
SYSTEM_GIB = 64
"""SkyPilot's own images take 30 to 50 (`_DEFAULT_SKYPILOT_IMAGE_GB` of azure.py, `DEFAULT_GCP_IMAGE_GB` of gcp.py), and
its runtime some more."""
LEAST_GIB = 256
"""What SkyPilot asks for where nobody says anything (`DEFAULT_DISK_SIZE_GB`): what fits there was never a question."""
ASKED_FOR_NONE = ("slurm/", "k8s/", "kubernetes/", "ssh/")
"""Machines that are there already: their disks are what they are, and the node's program looks before it fetches."""
SIZE = re.compile(r"(\d+)\s*(?:([GT])I?B?)?", re.IGNORECASE)


def disk_size(task: Mapping[str, Any], order: ReplicaOrder, offer: Offer) -> Mapping[str, int]:
    """SkyPilot's `disk_size` in GiB: what the task asks for, or more where the replica fills more; by its name."""
    if offer.cell.startswith(ASKED_FOR_NONE):
        return {}
    asked = task.get("disk_size")
    filled = SYSTEM_GIB + -(-order.disk_bytes // GIB) if order.disk_bytes else 0
    if asked is None and filled <= LEAST_GIB:
        return {}
    return {"disk_size": max(LEAST_GIB if asked is None else _gib(asked), filled)}


def _gib(asked: object) -> int:
    if (size := SIZE.fullmatch(str(asked).strip())) is None:
        raise Refused(f"the fleet's task asks for a disk_size of {asked!r}; give GiB as a number, or 512GB, or 2TB")
    return int(size[1]) * (1024 if (size[2] or "").upper() == "T" else 1)
