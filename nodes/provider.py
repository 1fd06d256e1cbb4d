"""Ray's EC2 node provider, with on-demand instances where spot ones aren't to be had.

The autoscaler's configuration names it: `type: external`, `module: nodes.provider.SpotThenOnDemand`. Ray has no such
fallback of its own. What it relies on of Ray's class is checked by tests/infra/test_provider.py.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity", "InsufficientHostCapacity", "UnfulfillableCapacity", "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
    }
)  # fmt: skip
"""What EC2 answers where there are no spot instances; a refused right or a wrong parameter is not among it."""

MARKET = "InstanceMarketOptions"

logger = logging.getLogger(__name__)


class SpotThenOnDemand(AWSNodeProvider):
    """Asks for what the node type says in all its subnets, and on lack of spot capacity for the same on demand."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
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
