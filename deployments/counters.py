"""What became of requests and batches since the router began, as Triton's statistics and repository index say it.

An application's counters are those of its clients' requests; each of its variants is listed after it under the unit's
name, `application/variant`, as Triton lists an ensemble and the models that it is made of. Bodies are plain
dictionaries; the same keys are those of the gRPC messages.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deployments.protocol import VERSION, NotOffered, UnknownApplication


class Span:
    """How often something took time, and how much altogether."""

    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def add(self, spent_s: float, times: int = 1) -> None:
        """Count `times` that took `spent_s` altogether."""
        self.count += times
        self.total_s += spent_s

    def duration(self) -> dict[str, int]:
        """Triton's StatisticDuration."""
        return {"count": self.count, "ns": round(1e9 * self.total_s)}


class Counters:
    """The counters of one application or one variant; instants are on the caller's clock."""

    __slots__ = ("batches", "executions", "fail", "infer", "last", "queue", "samples", "success")

    def __init__(self) -> None:
        self.success = Span()
        self.fail = Span()
        self.queue = Span()
        self.infer = Span()
        self.batches: dict[int, Span] = {}  # by samples
        self.samples = 0
        self.executions = 0
        self.last: float | None = None  # when a request was last answered

    def answered(self, samples: int, latency_s: float, now: float) -> None:
        """A request of `samples` was answered at `now`."""
        self.success.count += 1
        self.success.total_s += latency_s
        self.samples += samples
        self.last = now

    def failed(self, latency_s: float) -> None:
        """A request was refused or failed."""
        self.fail.count += 1
        self.fail.total_s += latency_s

    def ran(self, size: int, queued_s: float, infer_s: float) -> None:
        """A batch of `size` samples ran for `infer_s`, after its samples had waited `queued_s` altogether."""
        self.executions += 1
        self.queue.count += size
        self.queue.total_s += queued_s
        self.infer.count += size
        self.infer.total_s += size * infer_s  # Triton counts the whole batch's time for each of its samples
        batch = self.batches.get(size)
        if batch is None:
            batch = self.batches[size] = Span()
        batch.count += 1
        batch.total_s += infer_s

    def body(self, name: str, epoch_s: float) -> dict[str, Any]:
        """Triton's ModelStatistics; `epoch_s` is the time since 1970 at the clock's zero."""
        nothing = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": VERSION,
            "last_inference": 0 if self.last is None else round(1e3 * (epoch_s + self.last)),
            "inference_count": self.samples,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.duration(),
                "fail": self.fail.duration(),
                "queue": self.queue.duration(),
                "compute_input": nothing,
                "compute_infer": self.infer.duration(),
                "compute_output": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": span.duration(),
                    "compute_output": nothing,
                }
                for size, span in sorted(self.batches.items())
            ],
        }


class Statistics:
    """The counters of all applications and units; hold on to those that the hot path needs.

    `applications["toy"].answered(...)` and `.failed(...)` for each client's request, `ran("toy/good", ...)` for each
    batch that has finished, `units["toy/good"].answered(...)` for what of a request it has answered.
    """

    def __init__(self, applications: Iterable[str], units: Iterable[str], epoch_s: float = 0.0) -> None:
        self.applications: dict[str, Counters] = {}  # also of those that are served no more
        self.units: dict[str, Counters] = {}
        self._epoch_s = epoch_s
        self.serve(applications, units)

    def serve(self, applications: Iterable[str], units: Iterable[str]) -> None:
        """Exactly these are served from now on; whoever has been served before goes on counting."""
        self._served = tuple(applications)
        for name in self._served:
            self.applications.setdefault(name, Counters())
        self._of = {unit: self.applications[unit.split("/", 1)[0]] for unit in units}
        for unit in self._of:
            self.units.setdefault(unit, Counters())

    def ran(self, unit: str, size: int, queued_s: float, infer_s: float) -> None:
        """A batch of a unit has finished; it counts for its application too."""
        self.units[unit].ran(size, queued_s, infer_s)
        self.applications[unit.split("/", 1)[0]].ran(size, queued_s, infer_s)

    def body(self, application: str | None = None) -> dict[str, Any]:
        """Body of `GET /v2/models/{application}/stats`, or of `GET /v2/models/stats`.

        Raises:
            UnknownApplication: no such application is served.
        """
        if application is not None and application not in self._served:
            raise UnknownApplication.named(application, self._served)
        chosen = self._served if application is None else (application,)
        stats = []
        for name in chosen:
            own = self.applications[name]
            stats.append(own.body(name, self._epoch_s))
            mine = (unit for unit, of in self._of.items() if of is own)
            stats.extend(self.units[unit].body(unit, self._epoch_s) for unit in mine)
        return {"model_stats": stats}


def repository_index(
    applications: Iterable[str], ready: Callable[[str], bool], only_ready: bool = False
) -> list[dict[str, str]]:
    """Body of `POST /v2/repository/index`; `only_ready` is the request's `ready`."""
    index = []
    for name in applications:
        up = ready(name)
        if up or not only_ready:
            state = {"state": "READY", "reason": ""} if up else {"state": "UNAVAILABLE", "reason": "no device up yet"}
            index.append({"name": name, "version": VERSION, **state})
    return index


def refuse_loading(application: str, known: Mapping[str, Any], verb: str = "load") -> NotOffered:
    """What `POST /v2/repository/models/{application}/load` and `unload` answer, to be raised; `verb` is one of them.

    Raises:
        UnknownApplication: no such application is served.
    """
    if application not in known:
        raise UnknownApplication.named(application, known)
    return NotOffered(
        f"application '{application}': {verb} is not offered; the planner loads and unloads its variants. "
        "Change the cluster's configuration to serve other applications or variants"
    )
