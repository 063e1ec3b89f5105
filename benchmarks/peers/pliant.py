"""Pliant as a server under test: `pliant up CONFIG --foreground` with one pool of one device of this machine.

A variant alone, or all of an application (`Place.variants`). The profiles are measured once and cached.
"""

import json
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import yaml

from benchmarks.peers.forms import OIP_BINARY, Model
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    load_config,
)
from profiling.measure import profile

PLIANT_FORM = OIP_BINARY
PLIANT_STATUS = "/pliant/status"
POOL, MEMORY_MB = "cpu", 4096
NAME = "serving-benchmark"
SLO_S = 0.1


def pliant(
    scratch: Path, cache: Path, model: Model, port: int, every_variant: bool, slowdown: float, ingress: str = "direct"
) -> tuple[str, ...]:
    """The command that serves the model, or every variant of its application; writes the configuration it needs."""
    application, variant = model.path.parent.parent, model.path.parent.name
    slow = Emulation(slowdown) if slowdown > 1 else None
    pools = {POOL: PoolConfig(memory_mb=MEMORY_MB, emulated=slow)}
    # A variant's directory is measured in place, so that profiles are of these very files.
    files = sorted(application.glob("*/model.onnx"))
    digest = sha256(b"".join(path.read_bytes() for path in files) + json.dumps(asdict(pools[POOL])).encode())
    profiles = cache / "profiles" / f"{application.name}-{digest.hexdigest()[:12]}"
    if not profiles.is_dir():
        profile(application.parent, profiles, pools, [application.name])
    # Alone, a variant gives every answer itself: nothing looks at the requests first, or answers in its place.
    one = ApplicationConfig(SLO_S, variants=(variant,), peek="none")
    asked = ApplicationConfig(SLO_S) if every_variant else one
    config = ClusterConfig(
        name=NAME,
        models=str(application.parent),
        profiles=str(profiles),
        pools=pools,
        applications={application.name: asked},
        planner=PlannerConfig() if every_variant else PlannerConfig(data_aware=False),
        http=HttpConfig("0.0.0.0" if ingress == "haproxy" else "127.0.0.1", port, ingress),  # HAProxy knows no other
    )
    path = scratch / "cluster.yaml"
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    load_config(path)
    return (sys.executable, "-m", "cluster.cli", "up", str(path), "--foreground")
