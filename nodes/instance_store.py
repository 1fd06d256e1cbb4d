"""The instance's own NVMe disk as cache of shards, where it has one."""

import json
import os
import subprocess

from nodes.places import SHARD_CACHE, USER

MODEL = "Amazon EC2 NVMe Instance Storage"


def instance_stores() -> list[str]:
    """Device names of the instance's own disks."""
    told = subprocess.run(
        ["lsblk", "--json", "--nodeps", "--output", "PATH,MODEL"], capture_output=True, text=True, check=True
    )
    return [disk["path"] for disk in json.loads(told.stdout)["blockdevices"] if (disk["model"] or "").strip() == MODEL]


def mount_shard_cache() -> None:
    """Mount the first instance store at /mnt/shards, or leave the folder on the root disk where there is none."""
    SHARD_CACHE.mkdir(parents=True, exist_ok=True)
    disks = instance_stores()
    if disks and not os.path.ismount(SHARD_CACHE):
        subprocess.run(["mkfs.ext4", "-q", "-F", disks[0]], check=True)
        subprocess.run(["mount", "-o", "noatime", disks[0], str(SHARD_CACHE)], check=True)
    subprocess.run(["chown", f"{USER}:{USER}", str(SHARD_CACHE)], check=True)
