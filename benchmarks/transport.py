"""What one batch costs on its way from a router to a replica and back: channels against calls through Ray Serve.

The replica answers at once, so that only the way is measured; one batch is under way at a time. CPU is that of all
processes concerned, Ray's included. Medians of the runs, taken in turn. Everything listens on this machine only, but
for Serve's gRPC transport, which insists on all addresses: it is left out unless `--grpc` is given.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.edges import EdgeCluster, prepare_environment
from deployments.channel import Address, ChannelServer, connect
from deployments.config import ApplicationConfig, ClusterConfig, Manifest, PoolConfig, TensorSpec

SHAPE, CLASSES = (3, 32, 32), 10
SIZES = (1, 8, 32)
MANIFEST = Manifest(TensorSpec("x", SHAPE), TensorSpec("scores", (CLASSES,)), tuple(map(str, range(CLASSES))), 0.1, "a")
SECRET = b"benchmark"
WAYS = {
    "unix": "channel, Unix socket",
    "tcp": "channel, TCP",
    "actor": "Ray Serve, actor call",
    "grpc": "Ray Serve, gRPC",
}

Batch = NDArray[np.float32]
Send = Callable[[Batch], Awaitable[Any]]


class Echo:
    """A replica that has no work to do."""

    def __init__(self) -> None:
        self._channel = ChannelServer(self.infer, MANIFEST, SECRET, "127.0.0.1")

    def infer(self, batch: Batch) -> tuple[Batch, float]:
        """Something of the shape of scores."""
        return np.ascontiguousarray(np.asarray(batch).reshape(len(batch), -1)[:, :CLASSES]), 0.0

    def address(self) -> Address:
        """Where its channel is."""
        return self._channel.address


async def measure(send: Send, size: int, seconds: float, processes: list[psutil.Process]) -> tuple[float, float]:
    """Milliseconds of wall clock and of CPU that a batch takes."""
    batch = np.random.default_rng(size).standard_normal((size, *SHAPE)).astype(np.float32)
    for _ in range(20):
        await send(batch)
    cpu, start, count = _cpu_s(processes), time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        await send(batch)
        count += 1
    wall = time.perf_counter() - start
    return 1e3 * wall / count, 1e3 * (_cpu_s(processes) - cpu) / count


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


async def senders(handle: Any, ways: list[str]) -> dict[str, Send]:
    """How to send a batch, by way."""
    address = await handle.address.remote()
    loop = asyncio.get_running_loop()
    found: dict[str, Send] = {}
    for way in ways:
        if way in ("actor", "grpc"):
            found[way] = handle.infer.remote
            continue
        there = address if way == "unix" else Address("", address.host, address.port)
        channel = await connect(there, SECRET, MANIFEST)
        numbers = iter(range(1 << 60))

        async def send(batch: Batch, channel: Any = channel, numbers: Any = numbers) -> Any:
            answer = loop.create_future()
            views = [memoryview(sample).cast("B") for sample in batch]
            channel.send(next(numbers), views, lambda found, _: answer.set_result(found))
            return await answer

        found[way] = send
    return found


async def rounds(handle: Any, ways: list[str], seconds: float) -> None:
    """Measure each way once and print it, a line for each size."""
    me = psutil.Process()
    for way, send in (await senders(handle, ways)).items():
        for size in SIZES:
            wall, cpu = await measure(send, size, seconds, [me, *me.children(recursive=True)])
            print(f"{way} {size} {wall} {cpu}", flush=True)


def child(ways: list[str], seconds: float) -> None:
    """Measure in this process, with Ray as its environment says."""
    prepare_environment()
    config = ClusterConfig({"edge": PoolConfig()}, {"a": ApplicationConfig()})
    with EdgeCluster(config) as edges:
        import ray  # ray reads its environment when it is imported
        from ray import serve

        ray.init(address=edges.address, log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="Disabled")
        handle = serve.run(
            serve.deployment(Echo).options(max_ongoing_requests=8).bind(), name="echo", route_prefix=None
        )
        asyncio.run(rounds(handle, ways, seconds))


def main() -> None:
    """The table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="medians of so many runs (default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default 1)")
    parser.add_argument(
        "--grpc", action="store_true", help="also Serve's gRPC transport, which listens on all addresses"
    )
    parser.add_argument("--output", type=Path, help="write the table there as well")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.seconds)
        return
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {}
    groups = [(["unix", "tcp", "actor"], "0")] + ([(["grpc"], "1")] if options.grpc else [])
    for _ in range(options.runs):
        for ways, grpc in groups:
            command = [
                sys.executable,
                "-m",
                "benchmarks.transport",
                "--seconds",
                str(options.seconds),
                "--child",
                *ways,
            ]
            environment = {**os.environ, "RAY_SERVE_USE_GRPC_BY_DEFAULT": grpc}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            for line in done.stdout.splitlines():
                way, size, wall, cpu = line.split()
                seen.setdefault((way, int(size)), []).append((float(wall), float(cpu)))
    lines = ["| way | " + " | ".join(f"{n} samples: ms, CPU ms" for n in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for way in WAYS:
        if (way, SIZES[0]) in seen:
            cells = [[statistics.median(column) for column in zip(*seen[way, n], strict=True)] for n in SIZES]
            lines.append(f"| {WAYS[way]} | " + " | ".join(f"{wall:.2f}, {cpu:.2f}" for wall, cpu in cells) + " |")
    table = "\n".join(lines) + "\n"
    print(table)
    if options.output is not None:
        options.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
