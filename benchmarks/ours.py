"""What is measured as ours: the mirror's own transfer, without the flow around it, from a hub into an S3 store."""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from pydantic import SecretStr

from blocks.hugging_face import HuggingFaceHub
from blocks.s3 import S3Store
from flows.policy.ledger import mirror_prefix
from flows.tasks.transfer import Target, Transfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hub", required=True)
    parser.add_argument("--store", required=True, action="append", help="an endpoint; several are a fan-out")
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
    with Transfer(hub, model, targets, workers=given.workers) as transfer, ThreadPoolExecutor(8) as pool:
        copied = [file for file in pool.map(transfer.copy, model.files) if file is not None]
    for target in targets:
        if target.error is not None:
            raise target.error
    verified = sum(file.size_bytes for file in copied)
    sys.stdout.write(json.dumps({"verified_bytes": verified, "modules": len(sys.modules)}))


if __name__ == "__main__":
    main()
