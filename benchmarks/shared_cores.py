"""What can be seen on cores that server and client share: overload beside a control, slower devices, and routers.

    python benchmarks/shared_cores.py [--part overload] [--part devices] [--part routers] [--rounds 3]

*overload*: one variant on one device at full speed. In each round, in turn: as many requests as it can answer in time;
twice as many; and, as the control, as many as it can answer while a second client asks as much of a process that only
reads each request and refuses it. What goodput the control loses, no server could keep by refusing more cheaply.

*devices*: the same without the control, and the device emulated 1, 1.5, 2, 3 and 5 times slower: the slower it is, the
more of the cores is left for the router and the client. What is kept once they have enough is Pliant's own doing.

*routers*: one, two and four routers, each with a device (ten times slower, emulated) and a rate of its own: what a
request costs in the routers' CPU, and what the planner takes. Where that does not grow, routers scale with the cores
they get; a round trip is longer for each process that wants one of the same two cores.
"""

import argparse
import json
import multiprocessing
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import psutil
import yaml
from rich.console import Console

from benchmarks.peers.pliant import PLIANT_FORM, POOL, pliant
from benchmarks.peers.process import ServerError, Serving
from benchmarks.sections import table
from benchmarks.serving import default_cache
from benchmarks.serving_client import MOST_CONNECTIONS, Client, poisson
from benchmarks.serving_measures import LIMIT_S
from benchmarks.serving_model import bench_model, samples
from benchmarks.serving_report import machine
from cluster.engine.load import OK, Open, Requests, Server
from cluster.engine.send import send_http

PORT = 8171
REFUSER_PORT = 8172
START_S = 120.0
ROUTERS = (1, 2, 4)
SLOWDOWN = 10.0  # of the devices of several routers
SLOWDOWNS = (1.0, 1.5, 2.0, 3.0, 5.0)
WIDE = 256  # connections that keep a slower device busy
SHARE = 0.95  # of the closed loop's rate: what an open loop can have in time
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"


@contextmanager
def served(cache: Path, devices: int, routers: int, slowdown: float) -> Iterator[tuple[Serving, Client]]:
    """Pliant with one variant on so many devices, and a client of it; gone afterwards."""
    model, x = bench_model(cache), samples(64)
    with tempfile.TemporaryDirectory(prefix="p-") as scratch:
        command = pliant(Path(scratch), cache, model, PORT, False, slowdown)
        path = Path(scratch) / "cluster.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["pools"][POOL]["devices"] = devices
        config["router"]["replicas"] = routers
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with Serving(command, {}, Path(scratch)) as serving:
            _wait_settled(serving, devices, routers)
            client = Client(PLIANT_FORM, model, PORT, x)
            client.closed(8, 2.0)
            yield serving, client
            serving.check()


def _wait_settled(serving: Serving, devices: int, routers: int) -> None:
    until, said = time.monotonic() + START_S, {}
    while time.monotonic() < until:
        serving.check()
        with suppress(OSError, ValueError):
            said = json.loads(urlopen(f"http://127.0.0.1:{PORT}/pliant/status", timeout=5.0).read())
            owners = set(said.get("owners", {}).values())
            if (
                said.get("settled")
                and len(said["loaded"]) == devices
                and len(owners) == (routers if routers > 1 else 0)
            ):
                return
        time.sleep(0.3)
    raise ServerError(f"it did not settle in time: {said}")


def refuse(port: int, size: int) -> None:
    """Answer every request of `size` bytes with 503, doing nothing else, until this process is ended."""
    listening = socket.create_server(("127.0.0.1", port), backlog=4096)
    listening.setblocking(False)
    poll, peers, have = select.epoll(), dict[int, socket.socket](), dict[int, int]()
    poll.register(listening, select.EPOLLIN)
    room = bytearray(1 << 18)
    while True:
        for number, _ in poll.poll():
            if number == listening.fileno():
                with suppress(BlockingIOError):
                    while True:
                        peer, _ = listening.accept()
                        peer.setblocking(False)
                        peers[peer.fileno()], have[peer.fileno()] = peer, 0
                        poll.register(peer, select.EPOLLIN)
                continue
            try:
                got = peers[number].recv_into(room)
            except OSError:
                got = 0
            if not got:
                peers.pop(number).close()
                continue
            count, have[number] = divmod(have[number] + got, size)
            if count:
                with suppress(OSError):
                    peers[number].send(REFUSED * count)


def beside(raw: list[bytes], rate_rps: float, seconds: float, seed: int) -> None:
    """Ask the refusing process."""
    load = Open(poisson(rate_rps, seconds, seed), MOST_CONNECTIONS)
    send_http(Server("127.0.0.1", REFUSER_PORT), Requests(raw, None, LIMIT_S), load)


@contextmanager
def process(target: object, *given: object) -> Iterator[psutil.Process]:
    """A process of its own that is ended at the end."""
    started = multiprocessing.get_context("fork").Process(target=target, args=given, daemon=True)  # type: ignore[arg-type]
    started.start()
    assert started.pid is not None  # started
    try:
        yield psutil.Process(started.pid)
    finally:
        started.kill()
        started.join()


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers in time per second of one round."""

    peak_rps: float
    control_rps: float
    overload_rps: float
    control_cores: float  # that the second client and the refusing process took


def overload(client: Client, rate_rps: float, seconds: float, seed: int) -> Kept:
    """One round: the peak, twice as much, and the control."""
    peak, over = twice(client, rate_rps, seconds, seed)
    with process(refuse, REFUSER_PORT, len(client.raw[0])) as refusing:
        time.sleep(0.5)
        with process(beside, client.raw, rate_rps, seconds, seed + 1) as asking:
            before = _cpu_s(refusing, asking)
            came = client.open(rate_rps, seconds, seed)
            cores = (_cpu_s(refusing, asking) - before) / seconds
        client.settle()
    return Kept(peak, came.within(LIMIT_S) / came.seconds, over, cores)


def twice(client: Client, rate_rps: float, seconds: float, seed: int) -> tuple[float, float]:
    """Answers in time per second at this rate, and at twice this rate."""
    found = []
    for rate in (rate_rps, 2 * rate_rps):
        came = client.open(rate, seconds, seed)
        client.settle()
        found.append(came.within(LIMIT_S) / came.seconds)
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Slowed:
    """Answers in time per second of one round with a device so many times slower."""

    slowdown: float
    peak_rps: float
    overload_rps: float


def slowed(cache: Path, slowdown: float, seconds: float, seed: int) -> Slowed:
    """One round with such a device."""
    with served(cache, 1, 1, slowdown) as (_, client):
        rate_rps = SHARE * float((client.closed(WIDE, seconds).verdict == OK).sum()) / seconds
        return Slowed(slowdown, *twice(client, rate_rps, seconds, seed))


def _cpu_s(*processes: psutil.Process) -> float:
    return float(sum(sum(one.cpu_times()[:2]) for one in processes))


@dataclass(frozen=True, slots=True)
class Side:
    """What so many routers did."""

    routers: int
    closed_rps: float
    router_us: float  # CPU of all routers, a request
    planner_cores: float
    p50_s: float
    p99_s: float
    in_time: float


def side(cache: Path, routers: int, rate_rps: float, seconds: float, seed: int) -> Side:
    """One measurement of so many routers, each with a device and `rate_rps` of its own."""
    with served(cache, routers, routers, SLOWDOWN) as (_, client):
        sent = client.closed(64, seconds)
        client.settle()
        before, planner = _named("router"), _named("planner")
        came = client.open(routers * rate_rps, seconds, seed)
        spent, planned = _named("router") - before, _named("planner") - planner
    return Side(
        routers,
        float((sent.verdict == OK).sum()) / seconds,
        1e6 * spent / came.asked,
        planned / seconds,
        came.quantile_s(0.5),
        came.quantile_s(0.99),
        came.within(LIMIT_S) / came.asked,
    )


def _named(part: str) -> float:
    """CPU seconds of the cluster's processes of a name; Ray writes the deployment into it."""
    total = 0.0
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if f":{part}" in " ".join(one.cmdline()):
                total += sum(one.cpu_times()[:2])
    return total


def spread(values: Sequence[float], form: str) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def write_overload(kept: Sequence[Kept]) -> Iterator[str]:
    """The table of the first part."""
    own = [one.overload_rps / one.peak_rps for one in kept]
    control = [one.control_rps / one.peak_rps for one in kept]
    yield from table(
        ["offered", "in time, req/s", "of the peak"],
        [
            ["what it can answer", spread([one.peak_rps for one in kept], ",.0f"), "100 %"],
            ["twice that", spread([one.overload_rps for one in kept], ",.0f"), spread(own, ".0%")],
            [
                "what it can answer, and as much to a process that refuses all "
                f"(with its client {statistics.median(one.control_cores for one in kept):.2f} cores)",
                spread([one.control_rps for one in kept], ",.0f"),
                spread(control, ".0%"),
            ],
        ],
    )


def write_devices(found: Sequence[Sequence[Slowed]]) -> Iterator[str]:
    """The table of the second part."""
    yield from table(
        ["device slower by", "what it can answer, in time, req/s", "twice that offered", "of the peak"],
        [
            [
                f"{ones[0].slowdown:g} ×",
                spread([one.peak_rps for one in ones], ",.0f"),
                spread([one.overload_rps for one in ones], ",.0f"),
                spread([one.overload_rps / one.peak_rps for one in ones], ".0%"),
            ]
            for ones in found
        ],
    )


def write_routers(found: Sequence[Sequence[Side]], rate_rps: float) -> Iterator[str]:
    """The table of the third part."""
    head = ["routers", "closed loop, req/s", f"at {rate_rps:,.0f}/s each: routers' CPU µs/req", "planner, % of a core"]

    def middle(ones: Sequence[Side], field: str) -> float:
        return float(statistics.median(getattr(one, field) for one in ones))

    yield from table(
        [*head, "p50 / p99 ms", "in time"],
        [
            [
                str(ones[0].routers),
                f"{middle(ones, 'closed_rps'):,.0f}",
                f"{middle(ones, 'router_us'):.0f} ({min(o.router_us for o in ones):.0f}–"
                f"{max(o.router_us for o in ones):.0f})",
                f"{100 * middle(ones, 'planner_cores'):.1f}",
                f"{1e3 * middle(ones, 'p50_s'):.1f} / {1e3 * middle(ones, 'p99_s'):.1f}",
                f"{100 * middle(ones, 'in_time'):.1f} %",
            ]
            for ones in found
        ],
    )


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=("overload", "devices", "routers"), help="only this")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many [default: 3]")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load [default: 6]")
    parser.add_argument("--rate", type=float, default=500.0, help="requests/s to each router [default: 500]")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the model and its profile")
    given = parser.parse_args()
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    given.cache.mkdir(parents=True, exist_ok=True)
    console, text = Console(stderr=True), [f"{machine()}. Medians of {given.rounds} (lowest–highest).\n"]
    if not given.part or "overload" in given.part:
        with console.status("overload"), served(given.cache, 1, 1, 1.0) as (_, client):
            rate_rps = SHARE * float((client.closed(64, given.seconds).verdict == OK).sum()) / given.seconds
            kept = []
            for number in range(given.rounds):
                kept.append(overload(client, rate_rps, given.seconds, 10 * number))
                console.print(kept[-1])
        text += write_overload(kept)
    if not given.part or "devices" in given.part:
        rows: dict[float, list[Slowed]] = {slowdown: [] for slowdown in SLOWDOWNS}
        for number in range(given.rounds):
            for slowdown, these in rows.items():
                with console.status(f"a device {slowdown:g} times slower, round {number + 1}"):
                    these.append(slowed(given.cache, slowdown, given.seconds, number))
                console.print(these[-1])
        text += write_devices(list(rows.values()))
    if not given.part or "routers" in given.part:
        sides: dict[int, list[Side]] = {routers: [] for routers in ROUTERS}
        for number in range(given.rounds):
            for routers, ones in sides.items():
                with console.status(f"{routers} routers, round {number + 1}"):
                    ones.append(side(given.cache, routers, given.rate, given.seconds, number))
                console.print(ones[-1])
        text += write_routers(list(sides.values()), given.rate)
    print("\n".join(text))


if __name__ == "__main__":
    main()
