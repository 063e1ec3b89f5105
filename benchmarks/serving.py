"""Measures Pliant against other model servers over HTTP: the same ONNX model, the same client, the same machine.

    python benchmarks/serving.py --output serving.md --images docs/images [--quick] [--peers pliant,mosec,fastapi]

Part `servers`: one small CNN behind each server, one worker, one thread; each is started, checked against
onnxruntime, loaded and ended in turn, in an order drawn anew for each run. Part `ramp`: an application of the demo's
zoo under a rising rate, Pliant with all its variants, the others with the most accurate and with the cheapest alone.
The zoo's models take less time than HTTP does, so in the ramp all servers emulate the same slower device (--slowdown):
the model runs, and the rest of the time is waited out.

Each server has a virtual environment of its own under --cache, made on first use (3 GB for all of them); nothing is
installed into this one. What cannot be had here is named, and left out. Servers listen on 127.0.0.1, and run in a
network namespace of their own where one can be made (`unshare`: root, or user namespaces). Those that insist on all
addresses are left out elsewhere.

Rows are remembered beside the output (`serving.jsonl`), so a run that was stopped goes on where it was. A full run
takes about three minutes a server and run, a quick one about one. Nothing else should run on the machine meanwhile;
what neighbours took is reported.

Triton's onnxruntime backend is in no package. Build it (github.com/triton-inference-server/onnxruntime_backend, branch
r24.10, against the onnxruntime of pip), and put libtriton_onnxruntime.so and libonnxruntime.so.1 into
CACHE/triton-onnxruntime. Without it a small C++ backend of ours (`triton-direct`) stands for it; it needs g++.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from rich.console import Console

from benchmarks.peers.catalogue import PEERS
from benchmarks.serving_plan import Asked, do, lacking, ramps, visits
from benchmarks.serving_report import write
from benchmarks.serving_rows import Rows
from benchmarks.serving_visit import IN_PROCESS

PARTS = ("servers", "ramp")
NAMES = (IN_PROCESS, *PEERS)
RAMP_PEERS = ("pliant", "triton-direct", "mosec", "fastapi")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"unknown server '{name}'; known are {', '.join(NAMES)}")
    return names


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pliant" / "peers"


def parsed() -> Asked:
    """What the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("serving.md"), help="Markdown file; its rows go beside it")
    parser.add_argument("--images", type=Path, help="folder for the pictures [default: that of the output]")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the servers' environments, and the model")
    parser.add_argument("--peers", type=_names, default=NAMES, help=f"only these, with commas: {', '.join(NAMES)}")
    parser.add_argument("--runs", type=int, help="of each server; medians are shown [default: 3, quick 1]")
    parser.add_argument("--first-run", type=int, default=1, help="number of the first run, to add more later")
    parser.add_argument("--quick", action="store_true", help="short measurements, for a look")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; repeat for more")
    parser.add_argument("--application", default="digits", help="of the zoo, for the ramp [default: digits]")
    parser.add_argument("--ramp-peers", type=_names, default=RAMP_PEERS, help="servers of the ramp, with commas")
    parser.add_argument("--slo", type=float, default=0.1, help="of the ramp, seconds [default: 0.1]")
    parser.add_argument("--slowdown", type=float, default=30.0, help="of the ramp's emulated device [default: 30]")
    parser.add_argument("--stale", action="store_true", help="take rows that older code has measured, too")
    parser.add_argument("--report-only", action="store_true", help="start nothing; write what is remembered")
    given = parser.parse_args()
    runs = given.runs or (1 if given.quick else 3)
    return Asked(
        output=given.output,
        images=given.images or given.output.parent,
        cache=given.cache.resolve(),
        peers=given.peers,
        runs=tuple(range(given.first_run, given.first_run + runs)),
        quick=given.quick,
        parts=tuple(given.only or PARTS),
        application=given.application,
        ramp_peers=tuple(given.ramp_peers),
        slo_s=given.slo,
        slowdown=given.slowdown,
        stale=given.stale,
        report_only=given.report_only,
    )


def main() -> None:
    """Measures, and writes the page."""
    asked, console = parsed(), Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    for directory in (asked.output.parent, asked.images, asked.cache):
        directory.mkdir(parents=True, exist_ok=True)
    if shutil.which("unshare") is None:
        console.print("no `unshare` here: servers that listen on all addresses are left out")
    absent = {} if asked.report_only else lacking(asked, console)
    climbs = ramps(asked, absent) if "ramp" in asked.parts else []
    keys = visits(asked, absent, climbs)
    rows = Rows(asked.output.with_suffix(".jsonl"), asked.stale)
    try:
        if not asked.report_only:
            absent |= do(keys, rows, asked, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
    text = "\n".join(write(asked, rows, keys, absent)) + "\n"
    asked.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
