"""What accuracy scaling brings an application of plain Ray Serve: the example, with it and without it, under one load.

    python benchmarks/own_deployment.py [--seconds 60] [--peak 32 --peak 64] [--output own.md] [--port 24500]

A local Ray cluster of two logical CPUs runs `examples/own_deployment.yaml` by `serve run`. Requests come open-loop at
random instants: a quarter of the time 4 a second, half of it many (`--peak`), then 4 again. The three rows of each peak
are the example as it is; the same without `autoscaling_policy`, where the large variant scales by Serve's own policy
from one replica to two; and the small variant alone, the same way. Nothing else should run on the machine.
"""

import argparse
import asyncio
import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import httpx
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "own_deployment.yaml"
SLO_S = 0.5
QUIET_RPS = 4.0
PEAKS_RPS = (32.0, 64.0)
PARTS = (0.25, 0.5, 0.25)  # of the time: quiet, at the peak, quiet


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent, seconds until its answer, who answered and whether rightly."""

    sent: float
    seconds: float
    variant: str  # "" without an answer
    right: bool


def configuration(way: str, port: int) -> dict[str, Any]:
    """The example's configuration on a port: "pliant" as it is, else one variant under Serve's own autoscaling."""
    told: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    told["http_options"]["port"] = port
    (application,) = told["applications"]
    if way != "pliant":
        del application["autoscaling_policy"]
        application["args"] = {"default": way}
        for deployment in application["deployments"]:
            mine = deployment["name"] == way
            scaling = {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 3.0, "target_ongoing_requests": 1}
            deployment["autoscaling_config"] = scaling if mine else {"min_replicas": 0, "max_replicas": 1}
    return copy.deepcopy(told)


@contextmanager
def served(told: dict[str, Any], ray_port: int) -> Iterator[str]:
    """The URL of a Ray cluster on this machine that serves a configuration by `serve run`, until it is left."""
    directory = tempfile.mkdtemp(prefix="own-")
    environment = {
        **os.environ,
        "RAY_TMPDIR": directory,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on this machine only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # else `ray start` makes a token that drivers do not look for
        "PYTHONPATH": str(ROOT),
    }
    path = Path(directory, "serve.yaml")
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    head += ["--node-ip-address=127.0.0.1", f"--port={ray_port}", "--include-dashboard=false"]
    head += [f"--object-store-memory={100 * 2**20}", f"--temp-dir={directory}/ray"]
    run = [sys.executable, "-m", "ray.serve.scripts", "run", str(path), f"--address=127.0.0.1:{ray_port}"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with Path(directory, "output").open("wb") as output:
            for command in (head, run):
                processes.append(
                    subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
                )
                _wait_for_port(ray_port, processes[-1])
        url = f"http://127.0.0.1:{told['http_options']['port']}"
        _wait_for(url, processes[-1], Path(directory, "output"))
        yield url
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT if process is processes[-1] else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30.0)
            if process.poll() is None:
                process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", timeout_s: float = 60.0) -> None:
    """Until Ray's head listens; what it cannot, the next command says."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", output: Path, timeout_s: float = 120.0) -> None:
    """Until a request is answered; RuntimeError with what was printed where that does not happen."""
    from examples.own_deployment import digits

    body = {"x": digits()[0][0].tolist()}
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.post(url, json=body, timeout=30.0).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"nothing answers at {url}: {output.read_text(errors='replace')[-3000:]}")


def instants(rates_rps: Sequence[float], seconds: Sequence[float], seed: int = 0) -> list[float]:
    """Random instants with each of these rates for so many seconds, one after the other."""
    random, found, start = np.random.default_rng(seed), [], 0.0
    for rate_rps, length_s in zip(rates_rps, seconds, strict=True):
        found += (start + np.sort(random.uniform(0, length_s, random.poisson(rate_rps * length_s)))).tolist()
        start += length_s
    return found


def load(url: str, at: Sequence[float]) -> list[Answer]:
    """Ask at these instants, whatever became of earlier requests."""
    from examples.own_deployment import digits

    x, y = digits()
    x, y = x[1200:], y[1200:]

    async def ask(client: httpx.AsyncClient, i: int, began: float) -> Answer:
        await asyncio.sleep(max(0.0, began + at[i] - time.perf_counter()))
        sent = time.perf_counter()
        variant, right = "", False
        with suppress(httpx.HTTPError):
            answer = await client.post(url, json={"x": x[i % len(x)].tolist()})
            if answer.status_code == 200:
                variant, right = answer.json()["variant"], answer.json()["digit"] == y[i % len(y)]
        return Answer(at[i], time.perf_counter() - sent, variant, bool(right))

    async def everything() -> list[Answer]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=60.0, limits=limits, trust_env=False) as client:
            began = time.perf_counter() + 0.5
            return list(await asyncio.gather(*(ask(client, i, began) for i in range(len(at)))))

    return asyncio.run(everything())


def row(name: str, peak_rps: float, answers: Sequence[Answer]) -> str:
    """A row of the table."""
    answered = [a for a in answers if a.variant]
    timely = [a for a in answered if a.seconds <= SLO_S]
    accuracy = sum(a.right for a in timely) / len(timely) if timely else float("nan")
    both = sum(a.right for a in timely) / len(answers)
    large = sum(a.variant == "large" for a in answered) / max(1, len(answered))
    p95_s = float(np.percentile([a.seconds for a in answers], 95))
    return (
        f"| {peak_rps:g}/s | {name} | {len(answers)} | {100 * len(timely) / len(answers):.1f} % | "
        f"{100 * accuracy:.1f} % | **{100 * both:.1f} %** | {100 * large:.0f} % | {p95_s:.2f} s |"
    )


WAYS = {"pliant": "accuracy scaling", "large": "large alone, Serve's autoscaling", "small": "small alone, the same"}


def main() -> None:
    """Run every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peak", type=float, action="append", help="requests a second [default: 32 and 64]")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--port", type=int, default=24500, help="of HTTP; Ray's is the next")
    parser.add_argument("--only", choices=WAYS, action="append")
    asked = parser.parse_args()
    lines = [
        "| at most | | requests | in time | accuracy of those | right and in time | by the large | 95th percentile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peak_rps in asked.peak or PEAKS_RPS:
        at = instants((QUIET_RPS, peak_rps, QUIET_RPS), [part * asked.seconds for part in PARTS])
        for way in asked.only or WAYS:
            with served(configuration(way, asked.port), asked.port + 1) as url:
                time.sleep(10.0)  # replicas that the first request started have come up
                lines.append(row(WAYS[way], peak_rps, load(url, at)))
                print(lines[-1], flush=True)
    print("\n".join(lines))
    if asked.output is not None:
        asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
