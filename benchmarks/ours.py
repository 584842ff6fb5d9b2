"""What is measured as ours: the mirror's own transfer, without the flow around it, from a hub into an S3 store."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import SecretStr

from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.ports.hub import Model
from blocks.ports.store import MultipartUpload, Part, Store
from blocks.stores.s3 import S3Store
from flows.policy.mirrors.mirror import PART_BYTES
from flows.policy.releases.ledger import mirror_prefix
from flows.transfer.transfer import Target, Transfer


class Nowhere(S3Store):
    """Takes parts and forgets them, within this process."""

    bucket: str = "nowhere"

    def begin(self, key: str) -> MultipartUpload:
        return MultipartUpload(key, "nowhere", 0)

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        return Part(number, len(body), upload.id, "")

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """It is nowhere."""


def send_alone(store: Store, model: Model, part_bytes: int = PART_BYTES, workers: int = 4) -> None:
    """The same parts, of nothing, from memory."""
    size_bytes = sum(file.size_bytes for file in model.files)
    upload = store.begin("send-alone")

    def work(first: int) -> None:
        view = memoryview(bytearray(part_bytes))
        for number in range(first, size_bytes // part_bytes + 1, workers):
            store.send(upload, number, view)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(1, workers + 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hub", required=True)
    parser.add_argument("--store", action="append", default=[], help="an endpoint; several are a fan-out")
    parser.add_argument("--half", choices=["read", "send"], help="read and hash alone, or send alone")
    parser.add_argument("--repo", required=True)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    hub = HuggingFaceHub(endpoint=given.hub)
    model = hub.look_up(given.repo, "main")
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], SecretStr(os.environ["AWS_SECRET_ACCESS_KEY"])
    targets = [
        Target(
            endpoint,
            S3Store(bucket="benchmark", endpoint_url=endpoint, access_key_id=key, secret_access_key=secret),
            mirror_prefix(model.repo, model.commit),
            lacks={file.path for file in model.files},
        )
        for endpoint in given.store
    ]
    if given.half == "send":
        send_alone(targets[0].store, model)
        return
    if given.half == "read":
        targets = [Target("nowhere", Nowhere(), "", lacks={file.path for file in model.files})]
    with Transfer(hub, model, targets, workers=given.workers) as transfer, ThreadPoolExecutor(8) as pool:
        copied = [file for file in pool.map(transfer.copy, model.files) if file is not None]
    for target in targets:
        if target.error is not None:
            raise target.error
    verified = sum(file.size_bytes for file in copied)
    sys.stdout.write(json.dumps({"verified_bytes": verified, "modules": len(sys.modules)}))


if __name__ == "__main__":
    main()
