"""A node provider for Ray's autoscaler whose nodes are processes of this machine, named as real ones are."""

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Processes(FakeMultiNodeProvider):
    """Ray's own, but with node ids that differ in the beginning too, from which devices get their names."""

    def _next_hex_node_id(self) -> str:
        self._next_node_id += 1
        return f"{self._next_node_id:05d}" + "f" * 51
