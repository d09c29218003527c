"""A Ray cluster on this machine, each node in processes of its own: `python -m tests.plugins.ray_cluster`.

Prints the address, then answers each line of standard input, until that ends:

    {"add": CPUS, "env": {...}}   another node, whose processes have these environment variables; prints its number
    {"remove": NUMBER}            a node is killed without grace; prints its number
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.cluster_utils import Cluster

NODE = {"object_store_memory": 80_000_000}
# A node counts as lost after a second; by default after 15.
HEALTH = {"health_check_initial_delay_ms": 1_000, "health_check_period_ms": 250, "health_check_failure_threshold": 4}


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    head = {**NODE, "num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    cluster, nodes = Cluster(initialize_head=True, head_node_args=head), []
    print(cluster.address, file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        if "add" in order:
            with environment(order["env"]):
                nodes.append(cluster.add_node(num_cpus=order["add"], **NODE))
            print(len(nodes) - 1, file=answers)
        else:
            cluster.remove_node(nodes[order["remove"]], allow_graceful=False)
            print(order["remove"], file=answers)
    cluster.shutdown()


if __name__ == "__main__":
    main()
