"""Measure what loading one variant takes in a process of its own, as a replica would be.

`python -m profiling.memory APPLICATION_DIRECTORY VARIANT BATCH` is that process; it prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from deployments.config import DATATYPES, PoolConfig, load_manifest
from deployments.profiles import ProfileError
from deployments.runtimes import Runtime

# What a Ray Serve replica holds besides: `import ray.serve` added 120 MiB to a process with numpy and onnxruntime
# (Ray 2.60, Python 3.11), rounded up for its event loops and buffers.
RAY_REPLICA_BYTES = 150 * 2**20


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a replica that serves one variant, and how long the variant takes to load."""

    memory_bytes: int
    load_s: float


def measure_footprint(directory: Path, variant: str, batch: int) -> Footprint:
    """Load a variant in a fresh process, run one batch there and ask how much memory is its own.

    Raises:
        ProfileError: the process failed; its last words are in the message.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "profiling.memory", str(directory), variant, str(batch)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ProfileError(f"{directory / variant}: cannot be loaded in a process of its own: {last}")
    own_bytes, load_s = json.loads(done.stdout.splitlines()[-1])
    return Footprint(own_bytes + RAY_REPLICA_BYTES, load_s)


def _main(directory: str, variant: str, batch: str) -> None:
    manifest = load_manifest(directory)
    runtime = Runtime(Path(directory) / variant / "model.onnx", manifest, PoolConfig())
    runtime.run(np.zeros((int(batch), *manifest.input.shape), DATATYPES[manifest.input.datatype]))
    own_bytes = psutil.Process().memory_full_info().uss  # not shared with another process
    print(json.dumps([own_bytes, runtime.load_s]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
