"""One replica as a process of its own: llama.cpp's OpenAI-compatible server on loopback."""

import argparse
import json
import signal
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

# The names come out of its compiled part, which says nothing to a type checker.
from xllamacpp import CommonParams, Server  # pyright: ignore[reportAttributeAccessIssue] - see above

CONTEXT_STEP = 256
"""llama.cpp rounds the context up to this many tokens."""
HTTP_THREADS = 2
"""To begin with: further threads come as requests wait, so that the health check need not."""
ERRORS = 1
"""llama.cpp's verbosity: its warnings quote from requests that it cannot parse."""


def settings(weights: Path, *, port: int, context_tokens: int, parallel: int, alias: str) -> CommonParams:
    """What llama.cpp is started with: a request that does not fit its context gets HTTP 400, never a cut prompt."""
    params = CommonParams()
    params.model.path = str(weights)
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    # The context is divided evenly among the parallel requests, so that each has its own whole one.
    params.n_ctx = -(-context_tokens // CONTEXT_STEP) * CONTEXT_STEP * parallel
    params.n_parallel = parallel
    params.kv_unified = False
    params.ctx_shift = False
    params.fit_params = False  # the context that was ordered or none
    params.cache_ram_mib = 128  # for prompts that begin alike; without a limit it may take 8 GiB
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = HTTP_THREADS
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows what users wrote
    params.ui = False
    params.verbosity = ERRORS
    return params


def context_offered(port: int) -> int:
    """What one request may have: never more tokens than the model was trained for."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/props")
        return json.load(connection.getresponse())["default_generation_settings"]["n_ctx"]


def main() -> None:
    """Serve until SIGTERM, which ends the process at once: whoever sends it has drained the replica first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--alias", default="default")
    given = parser.parse_args()
    # The system's own way of ending: Python's would wait for the server's threads, which with a request in flight
    # never end. A client sees its stream break off, never one that looks complete.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = Server(
        settings(
            given.weights,
            port=given.port,
            context_tokens=given.context_tokens,
            parallel=given.parallel,
            alias=given.alias,
        )
    )
    offered = context_offered(given.port)
    if offered < given.context_tokens:
        sys.exit(
            f"{given.weights.name} was trained for {offered} tokens and {given.context_tokens} were asked for; "
            f"choose a context of {offered} tokens or fewer"
        )
    print(f"{given.weights.name} is served at {server.listening_address}", flush=True)  # noqa: T201 - the log is stdout
    signal.pause()


if __name__ == "__main__":
    main()
