"""Ray's EC2 node provider: on demand where spot instances aren't to be had, the next type where neither are.

The autoscaler's configuration names it: `type: external`, `module: nodes.provider.SpotThenOnDemand`. Ray has no such
fallbacks of its own. What it relies on of Ray's class is checked by tests/infra/test_provider.py.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from nodes.capacity import count_refusals, refuse

NO_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity", "InsufficientHostCapacity", "UnfulfillableCapacity", "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
    }
)  # fmt: skip
"""What EC2 answers where there are no spot instances; a refused right or a wrong parameter is not among it."""

NOT_THIS_TYPE = NO_CAPACITY | {"InstanceLimitExceeded", "Unsupported", "VcpuLimitExceeded"}
"""What it answers where another instance type may be had."""

MARKET = "InstanceMarketOptions"

logger = logging.getLogger(__name__)


class SpotThenOnDemand(AWSNodeProvider):
    """Asks for what the node type says in all its subnets, and on lack of spot capacity for the same on demand.

    A type that isn't to be had either way is told to the autoscaler, which then asks for the next one.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        count_refusals()  # the autoscaler makes its provider first
        super().__init__(provider_config, cluster_name)

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        try:
            return self._spot_then_on_demand(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category in NOT_THIS_TYPE:
                refuse(tags[TAG_RAY_USER_NODE_TYPE])
            raise

    def _spot_then_on_demand(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        try:
            return dict(super()._create_node(node_config, dict(tags), count))  # it changes the tags that it is given
        except NodeLaunchException as error:
            if error.category not in NO_CAPACITY or MARKET not in node_config:
                raise
            logger.warning(
                "%s: no spot capacity (%s) in %s; asking for on-demand",
                node_config.get("InstanceType"), error.category, node_config.get("SubnetIds"),
            )  # fmt: skip
        on_demand = {key: value for key, value in node_config.items() if key != MARKET}
        return dict(super()._create_node(on_demand, dict(tags), count))
