"""What stands in for EC2 in tests: instances whose Ray really starts, and a region without spot capacity."""

import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import BIN, STARTED
from tests.infra.conftest import Cluster

NO_CAPACITY = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code><Message>There is no capacity available that matches
your request.</Message></Error></Errors><RequestID>none</RequestID></Response>"""


SEE_NODES = """
import json, sys
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated.autoscaler_pb2 import NodeStatus
states = get_cluster_resource_state(GcsClient(address=sys.argv[1])).node_states
print(json.dumps([
    [node.instance_id, node.ray_node_type_name, node.node_ip_address]
    for node in states if node.status != NodeStatus.DEAD
]))
"""
"""Prints instance, node type and address of each node as the autoscaler sees it."""


class Ec2Proxy:
    """In front of moto: refuses spot instances of some types, and all of others, and keeps what RunInstances asked."""

    def __init__(self, port: int, moto_port: int, without_spot: set[str]) -> None:
        self.asked: list[dict[str, str]] = []
        self.without_any: set[str] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fields = dict(urllib.parse.parse_qsl(body.decode()))
                status, answer = proxy._answer(moto_port, body, fields, dict(self.headers), without_spot)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("Content-Type", "text/xml")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Nothing: the test's output is pytest's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(
        self, moto_port: int, body: bytes, fields: dict[str, str], headers: dict[str, str], without_spot: set[str]
    ) -> tuple[int, bytes]:
        if fields.get("Action") == "RunInstances":
            self.asked.append(fields)
            refused = without_spot if "InstanceMarketOptions.MarketType" in fields else self.without_any
            if fields["InstanceType"] in refused:
                return 500, NO_CAPACITY
        ask = urllib.request.Request(f"http://127.0.0.1:{moto_port}/", data=body, headers=headers)
        try:
            with urllib.request.urlopen(ask, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def start_worker(cluster: Cluster, **more: str) -> str:
    """An instance as an autoscaler starts them, with more tags, which Terraform knows nothing of."""
    found = cluster.resources()
    tags = {"ray-cluster-name": "pixelcnn", "ray-node-type": "worker", "ray-user-node-type": "g6.xlarge"} | more
    started = cluster.moto.client("ec2").run_instances(
        MinCount=1, MaxCount=1, InstanceType="g6.xlarge",
        LaunchTemplate={"LaunchTemplateId": found["aws_launch_template.worker"]["id"]},
        SubnetId=found["aws_subnet.private[0]"]["id"],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": key, "Value": tags[key]} for key in tags]}],
    )  # fmt: skip
    return str(started["Instances"][0]["InstanceId"])


def running_workers(ec2: Any) -> dict[str, dict[str, str]]:
    """Tags of the workers that EC2 runs, by instance."""
    filters = [
        {"Name": "tag:ray-node-type", "Values": ["worker"]},
        {"Name": "instance-state-name", "Values": ["running"]},
    ]
    found = [one for group in ec2.describe_instances(Filters=filters)["Reservations"] for one in group["Instances"]]
    return {one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in found}


class RayletsForInstances:
    """For each running worker in EC2 a raylet with that instance's identity; ended where EC2 has ended the instance.

    Instances with a tag `silent` run without ever joining. Where a raylet gave up before it was a node, as on a busy
    machine, another one starts, as nodes/ray_node.py has it. Each keeps files of its own: Ray unpacks a job's folder
    anew on every node that comes, and would do so below processes of other nodes that are in it.
    """

    def __init__(
        self, ec2: Any, address: str, resources: Callable[[str], list[str]], environment: dict[str, str], logs: Path
    ) -> None:
        self._ec2, self._address, self._resources, self._environment = ec2, address, resources, environment
        self._logs = logs
        self._raylets: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._over.wait(0.5):
            running = running_workers(self._ec2)
            joining = {instance for instance, tags in running.items() if "silent" not in tags}
            for instance in filter(self._wants_raylet, joining):
                self._raylets[instance] = self._start(instance, running[instance]["ray-user-node-type"])
            for instance in self._raylets.keys() - running.keys():
                self._end(self._raylets[instance])

    def _wants_raylet(self, instance: str) -> bool:
        raylet = self._raylets.get(instance)
        return raylet is None or (raylet.poll() is not None and STARTED not in self._log(instance).read_text())

    def _log(self, instance: str) -> Path:
        return self._logs / f"{instance}.log"

    def _files(self, instance: str) -> Path:
        return Path(f"/tmp/ray-{instance}")

    def _start(self, instance: str, kind: str) -> "subprocess.Popen[bytes]":
        environment = os.environ | self._environment
        environment |= {"RAY_CLOUD_INSTANCE_ID": instance, "RAY_NODE_TYPE_NAME": kind}
        command = [BIN / "ray", "start", "--block", "--address", self._address, *self._resources(kind)]
        command += ["--temp-dir", self._files(instance)]
        with self._log(instance).open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _end(self, raylet: "subprocess.Popen[bytes]") -> None:
        if raylet.poll() is None:
            os.killpg(raylet.pid, 15)
            raylet.wait(30)

    def close(self) -> None:
        """End all of them."""
        self._over.set()
        self._thread.join()
        for instance, raylet in self._raylets.items():
            self._end(raylet)
            shutil.rmtree(self._files(instance), ignore_errors=True)
