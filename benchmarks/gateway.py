"""What does it cost the gateway to count tokens? `python -m benchmarks.gateway`.

The same streams pass through HAProxy three times, in turns: without a filter, with one that stamps the first byte, and
with the one that counts. A made-up replica sends them, some users read them, each in a process of its own. What is
compared is HAProxy's own CPU time for each event, which a busy machine makes dearer for all three alike.
"""

import argparse
import asyncio
import json
import multiprocessing
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from blocks.haproxy.gateway import HAProxyGateway
from blocks.local.processes import Daemon, free_port
from deployments.haproxy.config import GatewaySettings, command, write_configuration

FIRST_BYTE = Path(__file__).with_name("gateway_first_byte.lua")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = {
    "id": "chatcmpl-7c1d9d0a4f7d4d7b8a6c3c6a4b1e2f30",
    "object": "chat.completion.chunk",
    "created": 1795399316,
    "model": "maker/model",
    "choices": [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}],
}
"""As vLLM writes it."""


def chunk(event: str) -> bytes:
    body = f"data: {event}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: int, seconds: float) -> None:
    event = chunk(json.dumps(EVENT, separators=(",", ":")))
    while head := await reader.readuntil(b"\r\n\r\n"):
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            break
        await reader.readexactly(2)
        writer.write(HEAD)
        for _ in range(tokens):
            writer.write(event)
            await asyncio.sleep(seconds)
        writer.write(chunk("[DONE]") + b"0\r\n\r\n")
    writer.close()


async def _replica(port: int, tokens: int, seconds: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(reader, writer, tokens, seconds)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()  # HAProxy is done with this connection

    async with await asyncio.start_server(answer, "127.0.0.1", port) as server:
        await server.serve_forever()


async def _users(port: int, streams: int, rounds: int) -> None:
    async def use() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        for _ in range(rounds):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: chat\r\ncontent-length: 2\r\n\r\n{}")
            await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()

    await asyncio.gather(*(use() for _ in range(streams)))


def _run(work: Callable[[], object]) -> multiprocessing.Process:
    process = multiprocessing.Process(target=work, daemon=True)
    process.start()
    return process


def serve(port: int, tokens: int, seconds: float) -> None:
    asyncio.run(_replica(port, tokens, seconds))


def use(port: int, streams: int, rounds: int) -> None:
    asyncio.run(_users(port, streams, rounds))


def cpu_seconds(filtered: str, options: argparse.Namespace) -> float:
    """HAProxy's own, for all streams once."""
    with tempfile.TemporaryDirectory() as directory:
        run, port, replica_port = Path(directory, "run"), free_port(), free_port()
        configuration = write_configuration(GatewaySettings(run_directory=run, services={"chat": f"127.0.0.1:{port}"}))
        if filtered == "no filter":
            configuration.write_text(configuration.read_text().replace("  filter lua.tokens\n", ""))
        elif filtered == "first byte":
            shutil.copyfile(FIRST_BYTE, run / "tokens.lua")
        haproxy = Daemon("haproxy", run)
        replica = _run(partial(serve, replica_port, options.tokens, options.milliseconds / 1000))
        _wait_for(lambda: socket.create_connection(("127.0.0.1", replica_port)).close())
        haproxy.start(command(run), env={})
        gateway = HAProxyGateway(admin_socket=run / "admin.sock")
        try:
            _wait_for(lambda: gateway.split("chat"))
            gateway.attach("chat", "blue", f"127.0.0.1:{replica_port}", is_tls=False)
            while gateway.servers("chat")[0].state != "up":
                time.sleep(0.05)
            master = haproxy.find()
            if master is None:
                sys.exit(f"HAProxy has ended: {haproxy.log_tail()}")
            before = _spent(master)
            users = _run(partial(use, port, options.streams, options.rounds))
            users.join()
            if users.exitcode != 0:
                sys.exit("the users did not get their answers")
            return _spent(master) - before
        finally:
            haproxy.stop(grace_seconds=2)
            replica.terminate()
            replica.join()


def _spent(master: psutil.Process) -> float:
    times = [process.cpu_times() for process in master.children()]
    return sum(time.user + time.system for time in times)


def _wait_for(works: Callable[[], object]) -> None:
    for _ in range(200):
        try:
            works()
        except Exception:  # noqa: BLE001 - whatever it is, it is not there yet
            time.sleep(0.05)
        else:
            return
    works()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50, help="at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="streams of each user, one after the other")
    parser.add_argument("--tokens", type=int, default=400, help="events of a stream")
    parser.add_argument("--milliseconds", type=float, default=10, help="from token to token")
    parser.add_argument("--times", type=int, default=5, help="each way is measured so many times, in turns")
    options = parser.parse_args()
    spent: dict[str, list[float]] = {"no filter": [], "first byte": [], "counted": []}
    for _ in range(options.times):
        for filtered, seconds in spent.items():
            seconds.append(cpu_seconds(filtered, options))
    events = options.streams * options.rounds * options.tokens
    print(f"{events:,} events in {options.streams * options.rounds} streams; medians of {options.times}")  # noqa: T201
    for filtered, seconds in spent.items():
        each, more = 1e6 * median(seconds) / events, median(seconds) / median(spent["no filter"])
        print(f"{filtered:>12} {median(seconds):7.2f} CPU s {each:6.1f} µs an event {more:6.2f} times")  # noqa: T201


if __name__ == "__main__":
    main()
