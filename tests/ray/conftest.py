"""A Ray cluster of two nodes on 127.0.0.1, as processes of this machine.

Ray replaces 127.0.0.1 by the machine's address, where anybody could connect; not here, where it
takes the machine for one that cannot be part of a cluster.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.engines import conftest as engines

# Before anybody imports Ray, which reads it then.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
once = engines.once
ROOT = str(Path(__file__).parents[2])
HOME = "127.0.0.1"
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20, "node_ip_address": HOME}


def pytest_ignore_collect(collection_path, config):
    """Without Ray there is nothing to import; `make test-ray` installs it."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return True if collection_path.name.startswith("test_") else None
    return None


@pytest.fixture(scope="session")
def cluster():
    """The cluster; `nodes` are its two nodes with room for workers.

    Nobody here is connected to it: each run does that.
    """
    os.environ["PYTHONPATH"] = ROOT
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": True, "dashboard_host": HOME}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.nodes = [found.add_node(**NODE) for _ in range(2)]
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture
def actors_of():
    """The processes of the actors of a node, or of all nodes."""

    def find(node=None):
        nodes = [node] if node is not None else []
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            name = " ".join(process.info["cmdline"] or [])
            if name.startswith("ray::Actor") and (
                not nodes or raylet_of(nodes[0]).pid == process.ppid()
            ):
                found.append(process)
        return found

    return find


def raylet_of(node):
    """The process that has the actors of a node for children."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)
