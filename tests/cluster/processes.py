"""A node provider for Ray's autoscaler whose nodes are processes of this machine, with memory like real ones."""

from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
)


class Processes(FakeMultiNodeProvider):
    """Ray's own fake refuses nodes of a given memory, and its ids begin alike, from which devices get their names."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, Any], labels: dict[str, str]
    ) -> None:
        del node_config, count  # Ray's adapter asks for one node at a time
        with self.lock:
            self._next_node_id += 1
            name = f"{self._next_node_id:05d}" + "f" * 51
            parameters = RayParams(
                node_ip_address="127.0.0.1",
                min_worker_port=0,
                max_worker_port=0,
                dashboard_agent_listen_port=0,
                num_cpus=resources["CPU"],
                num_gpus=0,
                memory=resources["memory"],
                object_store_memory=resources["object_store_memory"],
                labels=labels,
                redis_address=self._gcs_address,
                gcs_address=self._gcs_address,
                env_vars={
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name,
                    "RAY_CLOUD_INSTANCE_ID": name,
                    "RAY_NODE_TYPE_NAME": tags["ray-user-node-type"],
                },
            )
            node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
            named = {
                TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                TAG_RAY_NODE_NAME: name,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                **tags,
            }
            self._nodes[name] = {"tags": named, "node": node}
