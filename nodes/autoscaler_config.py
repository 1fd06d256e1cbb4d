"""The autoscaler's configuration, kept as it stands in the bucket: Ray reads the file anew at every round."""

import os
import time

import boto3

from nodes.places import AUTOSCALER

PAUSE_SECONDS = 60


def fetch_autoscaler_config() -> None:
    """Write the bucket's configuration to its file; a reader never sees half of it."""
    found = boto3.client("s3").get_object(Bucket=os.environ["PIXELCNN_BUCKET"], Key=os.environ["PIXELCNN_AUTOSCALER"])
    part = AUTOSCALER.with_suffix(".part")
    part.write_bytes(found["Body"].read())
    part.replace(AUTOSCALER)


def main() -> None:
    """Follow the bucket for ever."""
    while True:
        fetch_autoscaler_config()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
