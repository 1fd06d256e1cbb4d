"""The spot watcher: two minutes before EC2 takes a worker back, its node drains and training checkpoints in time."""

import os
import time

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from nodes.metadata import metadata
from nodes.places import RAY_PORT

POLL_SECONDS = 5
DEADLINE_SECONDS = 110
"""From the notice to the end are 120; some have passed when it is seen."""


def drain(address: str, instance: str) -> bool:
    """Tell Ray that an instance's node is about to be preempted.

    Returns:
        Whether the cluster knows a node of that instance and has taken the request.
    """
    client = GcsClient(address=address)
    for node in get_cluster_resource_state(client).node_states:
        if node.instance_id == instance:
            deadline = int((time.time() + DEADLINE_SECONDS) * 1000)
            accepted, refused = client.drain_node(
                node.node_id.hex(), DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot notice", deadline
            )
            print(f"spot notice: drain of node {node.node_id.hex()}: {'taken' if accepted else refused}", flush=True)
            return bool(accepted)
    print(f"spot notice: {address} knows no node of instance {instance}", flush=True)
    return False


def main() -> None:
    """Wait for the notice, then drain until Ray has taken it."""
    while metadata("spot/instance-action") is None:
        time.sleep(POLL_SECONDS)
    instance = metadata("instance-id") or ""
    while not drain(f"{os.environ['PIXELCNN_HEAD_ADDRESS']}:{RAY_PORT}", instance):
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
