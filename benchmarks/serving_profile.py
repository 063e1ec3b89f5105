"""Where the CPU time of a request goes inside Pliant: the router's and the replica's stages, sampled with py-spy.

    python benchmarks/serving_profile.py --output profile.md --images docs/images

Pliant serves the small CNN of `benchmarks/serving.py`, with a closed loop on it. The loop is measured undisturbed
first: that says what CPU time each thread takes for an answer. Then py-spy samples the two processes in turn, which
slows them down by 30 to 45 %: only the shares are taken from there, thread by thread. A sample belongs to the innermost
function of its stack that any stage has. py-spy also wakes threads that wait, which then look busy: they take no CPU
time, so their samples count for nothing.

It needs py-spy (`pip install py-spy`), and the right to trace processes. Nothing else should run on the machine.
"""

import argparse
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import matplotlib as mpl
import psutil
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.peer import PORT
from benchmarks.peers.process import Serving
from benchmarks.sections import table
from benchmarks.serving import default_cache
from benchmarks.serving_client import CONNECTIONS, HOST, Client
from benchmarks.serving_model import APPLICATION, bench_model, samples
from benchmarks.serving_report import machine
from benchmarks.serving_visit import Visit, up
from cluster.engine.load import OK
from cluster.picture import FAINT, INK, STYLE

OURS = "pliant"
PLANNER = "ray::ServeReplica:pliant:planner"
IDLE_S = 20.0
SAMPLED_HZ = 250
FRAME = re.compile(r"(.*) \((.*?)(?::\d+)?\)")  # function (file:line)
THREAD = re.compile(r"thread \((\d+)\)")
WIRE, DECIDE, BATCH, DRIVE, MODEL, REST = "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#C4CBD3"
KINDS = {"HTTP": WIRE, "deciding": DECIDE, "batches": BATCH, "driver": DRIVE, "model": MODEL, "rest": REST}


class SpyError(RuntimeError):
    """py-spy is not there, or may not look at a process."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a request's way."""

    name: str
    colour: str
    functions: tuple[str, ...]  # "file:function", or "file" for all of its functions


@dataclass(frozen=True, slots=True)
class Watched:
    """A process that is sampled."""

    name: str
    title: str  # with which its command line begins
    stages: tuple[Stage, ...]
    rest: str


ROUTER = (
    Stage("parsing HTTP", WIRE, ("deployments/connection.py:Connection.data_received",)),
    Stage("decoding the body", WIRE, ("deployments/endpoints.py:Endpoints.read_inference",)),
    Stage("look, estimate", DECIDE, ("deployments/looks.py:Looks.look",)),
    Stage("router machine", DECIDE, ("planner/router.py:Router.handle",)),
    Stage(
        "sending batches",
        BATCH,
        ("deployments/transport.py:Transport.send", "deployments/channel.py:Channel.send"),
    ),
    Stage("reading replies", BATCH, ("deployments/channel.py:Channel.data_received",)),
    Stage("posterior", DECIDE, ("deployments/looks.py:Looks.answered",)),
    Stage(
        "composing answers",
        WIRE,
        (
            "deployments/codec.py:encode_response",
            "deployments/tickets.py:Ticket.answer",
            "deployments/http1.py:response",
        ),
    ),
    Stage("writing to sockets", WIRE, ("deployments/connection.py:Connection.write",)),
    Stage(
        "driver",
        DRIVE,
        (
            "deployments/router.py",
            "deployments/flights.py",
            "deployments/tickets.py",
            "deployments/listener.py:Listener._serve",
        ),
    ),
)
REPLICA = (
    Stage("receiving", BATCH, ("deployments/channel.py:ChannelServer._receive",)),
    Stage("model", MODEL, ("onnxruntime/capi/onnxruntime_inference_collection.py:Session.run",)),
    Stage("replying", BATCH, ("deployments/channel.py:_send", "deployments/channel.py:_bytes")),
)
WATCHED = (
    Watched("router", f"ray::ServeReplica:{OURS}:router", ROUTER, "event loop and the rest"),
    Watched("replica", f"ray::ServeReplica:{OURS}:{APPLICATION}", REPLICA, "the rest"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks."""

    output: Path
    images: Path
    cache: Path
    seconds: int
    connections: int


@dataclass(frozen=True, slots=True)
class Window:
    """What a closed loop of requests came to."""

    rate_rps: float
    cpu_s: float  # of all the server's processes, per answer
    threads_s: Sequence[Mapping[int, float]]  # per answer, by thread, of each process that is watched


@dataclass(frozen=True, slots=True)
class Found:
    """Where the time of a process goes."""

    watched: Watched
    stages_s: Mapping[str, float]  # CPU time per answer, undisturbed
    rate_rps: float  # while it was sampled
    cpu_s: float  # per answer while it was sampled
    samples: int


# -- samples -----------------------------------------------------------------------------------------------------------


def stage_of(stack: str, watched: Watched) -> str:
    """The stage of one stack, outermost function first, as py-spy writes it."""
    for frame in reversed(stack.split(";")):
        if (found := FRAME.fullmatch(frame)) is not None:
            for stage in watched.stages:
                if any(_is(found[2], found[1], function) for function in stage.functions):
                    return stage.name
    return watched.rest


def _is(file: str, name: str, function: str) -> bool:
    where, _, what = function.partition(":")
    return f"/{file}".endswith(f"/{where}") and what in ("", name)


def counted(raw: str, watched: Watched) -> dict[int, Counter[str]]:
    """How many samples each stage has, by thread."""
    found: dict[int, Counter[str]] = {}
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if (thread := THREAD.match(stack)) is not None:
            found.setdefault(int(thread[1]), Counter())[stage_of(stack, watched)] += int(count)
    return found


def divided(
    counts: Mapping[int, Mapping[str, int]], threads_s: Mapping[int, float], watched: Watched
) -> dict[str, float]:
    """The CPU time of each stage: that of each thread in the proportions of its samples."""
    parts = dict.fromkeys([*(stage.name for stage in watched.stages), watched.rest], 0.0)
    for thread, spent_s in threads_s.items():
        seen = counts.get(thread) or {watched.rest: 1}
        for stage, count in seen.items():
            parts[stage] += spent_s * count / sum(seen.values())
    return parts


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(asked: Asked, spy: str) -> tuple[dict[str, float], Window, list[Found]]:
    """Start Pliant, leave it idle, load it, sample it, end it."""
    model = bench_model(asked.cache)
    with (
        TemporaryDirectory() as directory,
        up(PEERS[OURS], Visit(OURS, str(asked.cache), 0, False), model, samples(64)) as (serving, client, _),
    ):
        processes = [_process(watched.title) for watched in WATCHED]
        still = idle(serving, {"router": processes[0], "planner": _process(PLANNER), "replica": processes[1]})
        client.closed(8, 2.0)  # warm-up
        client.settle()
        plain = load(serving, client, asked, processes)
        found = []
        for index, (watched, process) in enumerate(zip(WATCHED, processes, strict=True)):
            raw = Path(directory) / f"{watched.name}.txt"
            with sampling(spy, process.pid, asked.seconds, raw):
                during = load(serving, client, asked, processes)
            counts = counted(raw.read_text(encoding="utf-8"), watched)
            stages_s = divided(counts, plain.threads_s[index], watched)
            cpu_s, number = sum(during.threads_s[index].values()), sum(c.total() for c in counts.values())
            found.append(Found(watched, stages_s, during.rate_rps, cpu_s, number))
        return still, plain, found


def idle(serving: Serving, processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Cores that each process takes while nothing is asked, and all of the server's."""
    time.sleep(3.0)  # after the start
    before, whole_s = {name: _cpu_s(process) for name, process in processes.items()}, serving.cpu_s()
    time.sleep(IDLE_S)
    spent = {name: (_cpu_s(process) - before[name]) / IDLE_S for name, process in processes.items()}
    return spent | {"all": (serving.cpu_s() - whole_s) / IDLE_S}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _process(title: str) -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()[:1]).startswith(title):
                return process
        except psutil.Error:
            continue  # it has just ended
    raise RuntimeError(f"no process '{title}...' among the server's")


def load(serving: Serving, client: Client, asked: Asked, processes: Sequence[psutil.Process]) -> Window:
    """A closed loop, and what it costs."""
    whole_s, before = serving.cpu_s(), [_threads_s(process) for process in processes]
    sent = client.closed(asked.connections, asked.seconds)
    after, whole_s = [_threads_s(process) for process in processes], serving.cpu_s() - whole_s
    good = int((sent.verdict == OK).sum())
    if not good:
        raise RuntimeError(f"no request of {len(sent)} was answered")
    spent = [
        {thread: (now_s - then.get(thread, 0.0)) / good for thread, now_s in now.items()}
        for now, then in zip(after, before, strict=True)
    ]
    return Window(sent.rate_rps, whole_s / good, spent)


def _threads_s(process: psutil.Process) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in process.threads()}


@contextmanager
def sampling(spy: str, pid: int, seconds: int, raw: Path) -> Iterator[None]:
    """Sample a process from when the body begins, for so long, into the file `raw`; SpyError."""
    command = [spy, "record", "-t", "-f", "raw", "-r", str(SAMPLED_HZ), "-d", str(seconds), "-o", str(raw)]
    process = subprocess.Popen(
        [*command, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None  # piped
        said = process.stdout.readline()
        if "Sampling" in said:
            yield
        said += process.communicate(timeout=30)[0]
        if process.returncode or not raw.is_file():
            raise SpyError(f"py-spy could not sample process {pid}: {said.strip()}")
    finally:
        process.kill()
        process.wait()


def spy_path() -> str:
    """Where py-spy is; SpyError."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise SpyError("py-spy is not installed, which takes the samples: pip install py-spy")
    return found


# -- the page ----------------------------------------------------------------------------------------------------------


def write(asked: Asked, still: Mapping[str, float], plain: Window, found: Sequence[Found]) -> Iterator[str]:
    """The page, a line at a time."""
    yield "### Where the time of a request goes\n"
    command = f"benchmarks/serving_profile.py --seconds {asked.seconds} --connections {asked.connections}"
    yield f"```\npython {command}\n```\n"
    yield f"{machine()}.\n"
    sampled = ", ".join(f"{f.rate_rps:,.0f} while the {f.watched.name} is sampled" for f in found)
    spent = ", ".join(f"{_us(sum(f.stages_s.values()))} ({_us(f.cpu_s)}) µs the {f.watched.name}" for f in found)
    others_s = plain.cpu_s - sum(sum(f.stages_s.values()) for f in found)
    numbers = " and ".join(f"{f.samples:,}" for f in found)
    yield (
        f"{asked.connections} connections in a closed loop: {plain.rate_rps:,.0f} requests/s undisturbed; {sampled}. "
        f"CPU per request, in brackets while sampled: {spent}; {_us(others_s)} µs all other processes. The table "
        f"divides the undisturbed times as {numbers} samples of py-spy say ({SAMPLED_HZ} a second). A thread that "
        "waits for a core counts as running, so on busy cores what wakes others (sending, writing) comes out too "
        "large, and plain Python too small.\n"
    )
    rows = [
        [f"{one.watched.name}: {stage}", f"{1e6 * spent_s:.1f}", f"{100 * spent_s / sum(one.stages_s.values()):.1f}"]
        for one in found
        for stage, spent_s in one.stages_s.items()
    ]
    yield from table(["stage", "CPU µs/request", "% of the process"], rows)
    yield (
        "*Driver*: requests to events, the machine's actions to batches and answers, timers. *Event loop and the "
        "rest*: uvloop, which reads sockets before anything of ours runs, and Ray's own threads.\n"
    )
    yield "![Where the time of a request goes](images/serving-profile.png)\n"
    shares = ", ".join(f"the {name} {100 * cores:.1f} %" for name, cores in still.items() if name != "all")
    yield (
        f"While nothing is asked ({IDLE_S:g} s): {shares} of a core; with the processes of Ray and Ray Serve "
        f"{100 * still['all']:.1f} %.\n"
    )


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}"


def draw(found: Sequence[Found], path: Path) -> None:
    """A bar for each process, its stages one after another."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 2.6 * len(found)), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        every = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        whole = max(sum(one.stages_s.values()) for one in found)
        for axes, one in zip(every, found, strict=True):
            _bar(axes, one, whole)
            axes.xaxis.set_visible(axes is every[-1])
            axes.spines["bottom"].set_visible(axes is every[-1])
        every[-1].set_xlabel("µs of CPU per request", color=INK)
        handles = [mpl.patches.Patch(color=colour, label=name) for name, colour in KINDS.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
        figure.savefig(path)


def _bar(axes: Axes, one: Found, whole_s: float) -> None:
    colours = {stage.name: stage.colour for stage in one.watched.stages}
    ends = list(accumulate(one.stages_s.values()))
    least, place = 0.03 * whole_s, -1.0
    for (name, spent_s), end in zip(one.stages_s.items(), ends, strict=True):
        colour = colours.get(name, REST)
        axes.barh(0, 1e6 * spent_s, left=1e6 * (end - spent_s), height=0.6, color=colour, edgecolor="white")
        middle = end - spent_s / 2
        place = max(middle, place + least)  # names that would overlap make room for each other
        axes.annotate(
            f"{name} {1e6 * spent_s:.1f}",
            (1e6 * middle, -0.3),
            (1e6 * place, -0.5),
            color=INK,
            fontsize=9,
            rotation=-30,
            rotation_mode="anchor",
            va="top",
            arrowprops={
                "arrowstyle": "-",
                "color": FAINT,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 1),
            },
        )
    axes.set_title(f"{one.watched.name.capitalize()}: {_us(ends[-1])} µs")
    axes.set_ylim(-1.9, 0.35)
    axes.set_xlim(0, 1.1e6 * whole_s)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)


# -- the command -------------------------------------------------------------------------------------------------------


def parsed() -> Asked:
    """What the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("profile.md"), help="Markdown file")
    parser.add_argument("--images", type=Path, help="folder for the picture [default: that of the output]")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the model and its profile")
    parser.add_argument("--seconds", type=int, default=8, help="of each of the three loops [default: 8]")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help=f"[default: {CONNECTIONS}]")
    given = parser.parse_args()
    images = given.images or given.output.parent
    return Asked(given.output, images, given.cache.resolve(), given.seconds, given.connections)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the server is being ended
    sys.exit(128 + number)


def _free() -> bool:
    """Whether nobody listens where Pliant will; it would share the port."""
    with socket.socket() as attempt:
        return attempt.connect_ex((HOST, PORT)) != 0


def main() -> None:
    """Measures, and writes the page."""
    asked = parsed()
    for number in (signal.SIGINT, signal.SIGTERM):  # the load would take Ctrl-C for its own end, and no more
        signal.signal(number, _end)
    for directory in (asked.output.parent, asked.images, asked.cache):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        spy = spy_path()
        if not _free():
            raise RuntimeError(f"something listens on {HOST}:{PORT} already; end it first")
        still, plain, found = measure(asked, spy)
    except (RuntimeError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    draw(found, asked.images / "serving-profile.png")
    text = "\n".join(write(asked, still, plain, found)) + "\n"
    asked.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
