"""Make the buckets of docker/compose.yaml that are missing.

python3 buckets.py mlflow dvc     # address and keys in MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...
"""

import os
import sys
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

PRESENT = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def main(names: list[str]) -> int:
    """Make the buckets with these names; those that exist stay as they are."""
    endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=endpoint)
    for name in names:
        try:
            _make(client, name)
        except (BotoCoreError, ClientError) as error:
            print(f"{endpoint}: bucket {name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: ready")
    return 0


def _make(client: Any, name: str) -> None:
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in PRESENT:
            raise
    client.head_bucket(Bucket=name)  # refuses a bucket of someone else's


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
