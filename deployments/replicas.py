"""Sends a call to exactly the replica that it names, by overriding how Ray Serve chooses one.

Ray pickles this module by value: what must be shared is reached through the module `registry`, never by its own name.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deployments import registry


class ExactReplicaRouter(RequestRouter):  # type: ignore[misc]  # Ray publishes no types
    """Routes `handle.options(session_id=uid)` to the replica `uid` and nowhere else.

    The choice has been made by the router machine, so there is nothing to probe and nothing to queue here.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve's long poll: these replicas run."""
        super().update_replicas(replicas)
        self._by_uid = {r.replica_id.unique_id: r for r in self._replicas.values()}
        registry.REGISTRY.publish(
            self._deployment_id.name, {uid: r.replica_metadata for uid, r in self._by_uid.items()}
        )

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The public contract: ranked candidates, here the named one or all."""
        named = self._named(pending_request)
        return [[named]] if named else [candidate_replicas]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        del is_retry
        named = self._named(pending_request)
        if named is None:
            raise registry.ReplicaGone(f"replica '{pending_request.metadata.session_id}' does not run any more")
        return named

    def _named(self, pending: Any) -> RunningReplica | None:
        by_uid = getattr(self, "_by_uid", {})  # Ray may ask before its first update
        return by_uid.get(pending.metadata.session_id) if pending else None
