"""The open-loop load generator: every request leaves at its intended instant, whatever has come back by then.

Bodies are encoded before the run, and only the label is asked for. It costs 0.15 to 0.25 ms of CPU per request, aiohttp
included (with httpx: about 1 ms), so that 1000 requests/s take a sixth of a core from the server under test.
"""

import asyncio
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.outcomes import Outcome, Outcomes, Status
from cluster.workload import Workload
from deployments.codec import decode_response, encode_request
from deployments.config import Manifest
from deployments.protocol import LABEL, InferRequest, Output, WireError

REFUSALS = (429, 503, 504)  # the server says no on purpose; anything else but 200 is an error
CONNECTIONS = 512  # at once; when they are all busy, requests wait, and their latency counts on
IDLE_S = 2.0  # connections are dropped sooner than uvicorn does (5 s), or a request meets one that is closing


class LoadError(ValueError):
    """A load that cannot be sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of one application: its heldout samples `x` [sample, ...], their classes `y` [sample], the SLO."""

    manifest: Manifest
    x: NDArray[Any]
    y: NDArray[Any]
    slo_s: float
    min_accuracy: float = 0.0
    priority: float = 1.0


class Reply(NamedTuple):
    """The server's answer as it came, or why there is none (status 0)."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    error: str = ""


class _Answer(NamedTuple):
    error: str
    label: int = -1
    variant: str = ""
    pool: str = ""
    expected_accuracy: float = math.nan
    emulated: bool = False
    router_s: float = math.nan


class _Body(NamedTuple):
    content: bytes
    headers: dict[str, str]


OnOutcome = Callable[[Outcome], None]


def send_load(
    url: str,
    workload: Workload,
    targets: Mapping[str, Target],
    on_outcome: OnOutcome | None = None,
    connections: int = CONNECTIONS,
) -> Outcomes:
    """Send `workload` to the server at `url` and wait for what comes of it.

    Returns one outcome per request, in order. After Ctrl-C those of the requests sent until then, so that there are
    fewer than `len(workload)`.

    Raises:
        LoadError: a target is missing, or has fewer samples than the workload asks for.
    """
    generator = LoadGenerator(url, workload, targets, on_outcome, connections)
    return asyncio.run(generator.run())


class LoadGenerator:
    """One run of a workload; `on_outcome` is called with each outcome as it comes, on the event loop."""

    def __init__(
        self,
        url: str,
        workload: Workload,
        targets: Mapping[str, Target],
        on_outcome: OnOutcome | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self._workload = workload
        self._targets = _check(workload, targets)
        self._urls = [f"{url.rstrip('/')}/v2/models/{quote(name, safe='')}/infer" for name in workload.applications]
        self._bodies = _encode(workload, self._targets)
        self._on_outcome = on_outcome
        self._connections = connections
        self._sent = np.full(len(workload), np.nan)
        self._outcomes: list[Outcome | None] = [None] * len(workload)
        self._start = math.nan

    async def run(self) -> Outcomes:
        """Send everything; when cancelled, stop at once and return what there is."""
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
        no_timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, timeout=no_timeout, cookie_jar=jar) as session:
            slots = asyncio.Semaphore(self._connections)
            tasks: set[asyncio.Task[None]] = set()
            self._start = loop.time()
            try:
                for index, instant in enumerate(self._workload.instant.tolist()):
                    wait_s = self._start + instant - loop.time()
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
                    elif index % 64 == 0:
                        await asyncio.sleep(0)  # behind time: answers must be read all the same
                    task = loop.create_task(self._ask(index, session, slots))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return Outcomes.of(outcome for outcome in self._outcomes if outcome is not None)

    async def _ask(self, index: int, session: aiohttp.ClientSession, slots: asyncio.Semaphore) -> None:
        """One request, from its intended instant to its outcome; whatever happens, it has one."""
        application = int(self._workload.application[index])
        timeout_s = self._target(index).slo_s * 4 + 5
        reply = Reply(0, b"", {}, "interrupted before an answer came")
        try:
            async with asyncio.timeout_at(self._start + self._workload.instant[index] + timeout_s), slots:
                self._sent[index] = self._now()
                reply = await _post(session, self._urls[application], self._bodies[application][self._sample(index)])
        except TimeoutError:
            why = "no answer" if self._sent[index] == self._sent[index] else f"all {self._connections} connections busy"
            reply = Reply(0, b"", {}, f"{why} for {timeout_s:g} s")
        except Exception as error:  # whatever a server provokes, its request has an outcome
            reply = Reply(0, b"", {}, f"{type(error).__name__}: {error}")
        finally:  # a cancelled one too
            self._finish(index, reply)

    def _finish(self, index: int, reply: Reply) -> None:
        target, intended, finished = self._target(index), float(self._workload.instant[index]), self._now()
        answer = _read(reply)
        status: Status = "rejected" if reply.status in REFUSALS else "error"
        if answer.label >= 0:
            status = "ok" if finished - intended <= target.slo_s else "late"
        outcome = Outcome(
            application=self._workload.applications[int(self._workload.application[index])],
            sample=self._sample(index),
            label=int(target.y[self._sample(index)]),
            intended=intended,
            sent=float(self._sent[index]),
            finished=finished,
            status=status,
            http_status=reply.status,
            error=answer.error,
            answered=answer.label,
            variant=answer.variant,
            pool=answer.pool,
            expected_accuracy=answer.expected_accuracy,
            deadline_s=target.slo_s,
            emulated=answer.emulated,
            router_s=answer.router_s,
        )
        self._outcomes[index] = outcome
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    def _target(self, index: int) -> Target:
        return self._targets[int(self._workload.application[index])]

    def _sample(self, index: int) -> int:
        return int(self._workload.sample[index])

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._start


def _check(workload: Workload, targets: Mapping[str, Target]) -> list[Target]:
    """The targets in the workload's order."""
    for position, name in enumerate(workload.applications):
        if name not in targets:
            raise LoadError(f"the workload asks application '{name}'; targets are {', '.join(targets) or 'none'}")
        asked = workload.sample[workload.application == position]
        given = min(len(targets[name].x), len(targets[name].y))
        if len(asked) and asked.max() >= given:
            raise LoadError(f"the workload asks sample {asked.max()} of '{name}', which has {given}: draw it anew")
    return [targets[name] for name in workload.applications]


def _encode(workload: Workload, targets: list[Target]) -> list[dict[int, _Body]]:
    """The body of each sample that will be asked, by application and sample."""
    bodies: list[dict[int, _Body]] = []
    for position, target in enumerate(targets):
        asked = np.unique(workload.sample[workload.application == position])
        bodies.append({int(sample): _body(target, int(sample)) for sample in asked})
    return bodies


def _body(target: Target, sample: int) -> _Body:
    request = InferRequest(
        target.x[sample : sample + 1],
        deadline_ms=target.slo_s * 1000,
        min_accuracy=target.min_accuracy,
        priority=target.priority,
        outputs=(Output(LABEL),),
    )
    return _Body(*encode_request(request, target.manifest))


async def _post(session: aiohttp.ClientSession, url: str, body: _Body) -> Reply:
    async with session.post(url, data=body.content, headers=body.headers) as response:
        return Reply(response.status, await response.read(), response.headers)


def _read(reply: Reply) -> _Answer:
    if reply.status != 200:
        return _Answer(reply.error or _error(reply))
    try:
        response = decode_response(reply.body, reply.headers)
        parameters = response.parameters
        return _Answer(
            "",
            operator.index(response.outputs[LABEL][0]),
            str(parameters.get("variant", "")),
            str(parameters.get("pool", "")),
            float(parameters.get("expected_accuracy", math.nan)),
            bool(parameters.get("emulated", False)),
            float(parameters.get("latency_ms", math.nan)) / 1e3,
        )
    except (WireError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return _Answer(f"not an answer of the protocol: {error!r}")


def _error(reply: Reply) -> str:
    try:
        return str(orjson.loads(reply.body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return reply.body[:200].decode(errors="replace") or f"HTTP {reply.status}"
