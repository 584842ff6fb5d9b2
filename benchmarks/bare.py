"""The least that any mirror has to do here: read from loopback, hash, write to loopback. No protocol to speak of."""

import argparse
import hashlib
import http.client

BUFFER_BYTES = 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hub", required=True, help="host:port")
    parser.add_argument("--store", required=True, help="host:port")
    parser.add_argument("files", nargs="+")
    given = parser.parse_args()
    view = memoryview(bytearray(BUFFER_BYTES))
    source, sink = http.client.HTTPConnection(given.hub), http.client.HTTPConnection(given.store)
    for name in given.files:
        digest = hashlib.sha256()
        source.request("GET", f"/files/{name}")
        answer = source.getresponse()
        size = int(answer.headers["Content-Length"])
        sink.putrequest("PUT", f"/benchmark/bare/{name}")
        sink.putheader("Content-Length", str(size))
        sink.endheaders()
        while count := answer.readinto(view):
            digest.update(view[:count])
            sink.send(view[:count])
        sink.getresponse().read()


if __name__ == "__main__":
    main()
