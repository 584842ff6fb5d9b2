"""What anyone would write first: huggingface_hub to the disk, boto3 from there, both as fast as they can be set."""

import argparse
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from huggingface_hub import snapshot_download


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hub", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    given = parser.parse_args()
    home = Path(snapshot_download(given.repo, endpoint=given.hub, local_dir=given.directory, max_workers=4))
    client = boto3.client("s3", endpoint_url=given.store, region_name="us-east-1")  # the keys are in the environment
    config = TransferConfig(multipart_chunksize=32 << 20, max_concurrency=4)
    for path in sorted(home.glob("*.safetensors")):
        client.upload_file(str(path), "benchmark", f"plain/{path.name}", Config=config)


if __name__ == "__main__":
    main()
