"""What a replica's cluster is called: short enough for every cloud, and no two alike.

SkyPilot adds a user's hash to a name, cuts what is then too long for the cloud, and tells what it has cut apart by two
characters. GCP takes 35 characters and a service account's hash has 19, so what is never cut has 15 at most. Only
Samsung's cloud takes fewer (28): there a name stays whole under a person's hash, of 8 characters.
"""

import re
from base64 import b32encode
from hashlib import sha256

LONGEST = 15
DIGEST = 10
"""Characters of five bits: of a million names, two are alike once in two thousand times."""


def cluster_name(installation: str, replica: str) -> str:
    """A few letters that a person knows again, and a hash of all that makes the replica another one than others.

    Lower case, digits and one dash, beginning with a letter: what clouds, Kubernetes and host names all take.
    """
    digest = b32encode(sha256(f"{installation}\0{replica}".encode()).digest()).decode().lower()[:DIGEST]
    letters = re.sub(r"[^a-z0-9]", "", replica.lower())
    head = letters if letters[:1].isalpha() else f"r{letters}"
    return f"{head[: LONGEST - DIGEST - 1]}-{digest}"
