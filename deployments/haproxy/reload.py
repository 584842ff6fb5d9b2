"""Has a running gateway read its configuration again."""

import socket
from pathlib import Path

import stamina

from blocks.errors import Refused, Unavailable

ANSWER_SECONDS = 60
"""HAProxy tries a port that is taken for two seconds, and looks the outside provider's address up."""


def reload(run_directory: Path, timeout_seconds: float = 60) -> None:
    """Return once a new worker runs with the configuration that stands there now; requests in flight go on.

    By the master's socket, which answers. SIGUSR2 does the same and is lost without a word where it comes while an
    earlier reload is in progress: the master starts itself anew, twice, and ignores the signal each time until it is
    done. Its socket is closed meanwhile, so this asks again. Refused, in HAProxy's own words, where it cannot run with
    that configuration; then the old worker goes on. Unavailable where no master answers in time.
    """
    patient = stamina.RetryingCaller(
        attempts=None, timeout=timeout_seconds, wait_initial=0.05, wait_jitter=0.05, wait_max=0.5
    )
    answer = patient(Unavailable, _ask, run_directory / "master.sock")
    if not answer.startswith("Success=1\n"):
        alerts = "\n".join(line for line in answer.splitlines() if line.startswith("[ALERT]"))
        raise Refused(f"the gateway in {run_directory} goes on as it was; mend this and reload:\n{alerts or answer}")


def _ask(master: Path) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(master))
            connection.sendall(b"reload\n")
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    except OSError as error:
        raise Unavailable(f"no connection to the gateway's master at {master}: {error}; is it running?") from error
    if not answer.startswith("Success="):
        raise Unavailable(f"the gateway's master at {master} was reloading or ending, and said {answer!r}; try again")
    return answer
