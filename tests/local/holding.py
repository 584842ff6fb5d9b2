"""No test by itself: it starts a daemon, and a process of no daemon, and waits to be killed with all that runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from blocks.local.processes import Daemon

FOR_EVER = (sys.executable, "-c", "import signal; signal.pause()")


@pytest.mark.timeout(0)
def test_that_never_ends(tmp_path: Path) -> None:
    Daemon("server", tmp_path).start(FOR_EVER, env={})
    subprocess.run(FOR_EVER, check=True)
