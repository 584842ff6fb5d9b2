"""What a rented machine installs for one version of an engine: each package by its hashes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from blocks.cleaning import cleaned
from blocks.errors import Refused

LONGEST_SECONDS = 600


def version_in(lock: str, package: str) -> str:
    """Of that package; empty where the lock has none."""
    found = re.search(rf"^{re.escape(package)}==([^\s;\\]+)", lock, re.MULTILINE)
    return found[1] if found else ""


def lock_of(package: str, version: str) -> str:
    """Resolved anew by uv, as `make lock-engines` does; Refused in uv's words where there is no such version."""
    beside = str(Path(sys.executable).parent)
    if (uv := shutil.which("uv", path=beside) or shutil.which("uv")) is None:
        raise Refused(
            f"{package} {version} has no lock here, and uv, which makes one, is not installed beside Skyferry; install "
            f"uv, or give the engine a task with a lock of your own at ~/skyferry/requirements.txt"
        )
    command = [uv, "pip", "compile", "-", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header", "--quiet"]
    try:
        done = subprocess.run(
            command,
            input=f"{package}=={version}\n",
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(
            f"what {package} {version} needs was not resolved within {LONGEST_SECONDS} s; see to the package index"
        ) from None
    if done.returncode:
        raise Refused(f"{package} {version} cannot be had: {cleaned(done.stderr)}; choose another version")
    lines = done.stdout.replace("\\\n", " ").splitlines()
    if version_in(done.stdout, package) != version or not all(
        "--hash=sha256:" in line for line in lines if line.strip()
    ):
        raise Refused(
            f"{package} {version} was resolved to something that is no lock by hashes; choose another version"
        )
    return done.stdout
