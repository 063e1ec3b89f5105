"""The fast choice: which route, an option on a pool, a request should take, given the work that waits before it."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planner.batching import largest_batch
from planner.events import Request
from planner.fleet import Executor, Place, Twins, start_after

JUST_AFTER_S = 1e-6  # a request expires this long after its last start: starting at that very instant is open
TOO_LATE = 0.5  # of a request's time: routes that end this much later than the soonest are not compared with it
DELAY = 0.003  # accuracy that a request's whole time is worth: of routes as good, the one that ends first


@dataclass(slots=True, eq=False)
class Route:
    """One way to answer an application's requests: an option whose unit is up on a pool, and those that wait for it."""

    index: int  # of the option, into `Request.accuracy`
    option: str
    unit: str
    place: Place
    table: tuple[float, ...]  # profiled seconds by batch size
    slo_class: int  # of the application, into `Place.waiting_s`
    planned: int = 1  # batch size that the plan counts on
    enough: int = 1  # the smallest that serves as many per second, all but
    number: int = 0  # of the option among those of all applications
    accuracy: float = 0.0  # of the option, as profiled
    overhead_s: float = 0.0  # beyond the profile, until a batch is answered
    between_s: float = 0.0  # beyond the profile, until the device has its next batch
    device_s: float = 0.0  # device time of one request in a batch as large as planned
    cost: float = 0.0  # accuracy that a request's device time must earn, at the planned batch
    loss: float = 0.0  # cost less accuracy: the least is the best as profiled
    twins: Sequence[Twins] = ()  # that hold the unit, those with the fewest other uses first
    devices: int = 0  # that hold it
    overloaded: bool = False  # not even the cheapest options can all be carried by the devices
    queue: list[Request] = field(default_factory=list)  # the most urgent first
    held_until: float = 0.0  # its batch may wait until then to grow
    timer: float = float("inf")  # when its head is to be looked at again
    work_s: float = 0.0  # device-seconds that wait
    open_s: float = 0.0  # of these, what the last batch takes, which one more can join

    def start_s(self, now: float, left_s: float) -> float:
        """Seconds until a request could start if it joined those that wait; none if a device is idle."""
        for twins in self.twins:
            if twins.idle:
                return 0.0
        place = self.place
        first_s, mean_s, work_s = place.look(now, left_s)
        wait_s = start_after(first_s, mean_s, (work_s - self.open_s) / place.load.devices)
        if self.devices < place.load.devices:
            first_s = self.first_free(now) - now
            mean_s = sum(twins.load.remaining_s(now) * twins.load.devices for twins in self.twins) / self.devices
            wait_s = max(wait_s, start_after(first_s, mean_s, (self.work_s - self.open_s) / self.devices))
        return wait_s

    def first_free(self, now: float) -> float:
        """When the first device that holds the unit should be free."""
        twins = self.twins
        if len(twins) == 1:
            return twins[0].first_free(now)
        return min([each.first_free(now) for each in twins], default=float("inf"))

    def idle(self) -> Executor | None:
        """A device that holds the unit and has nothing to do."""
        for twins in self.twins:
            for executor in twins.idle.values():
                return executor
        return None

    def join(self, request: Request) -> None:
        """The request waits here from now on."""
        queue = self.queue
        if not queue or queue[-1].deadline < request.deadline:
            queue.append(request)
        else:
            insort(queue, request, key=urgency)
        self.count()

    def leave(self, request: Request) -> bool:
        """The request does not wait here any more; False if it did not."""
        at = bisect_left(self.queue, urgency(request), key=urgency)
        if at == len(self.queue) or self.queue[at].id != request.id:
            return False
        del self.queue[at]
        self.count()
        return True

    def take(self, requests: Sequence[Request]) -> None:
        """The requests, most of them the most urgent ones, do not wait here any more."""
        queue, n = self.queue, len(requests)
        if queue[n - 1 : n] and queue[0].id == requests[0].id and queue[n - 1].id == requests[-1].id:
            del queue[:n]
        else:
            gone = {request.id for request in requests}
            last = max(urgency(request) for request in requests)
            end = bisect_right(queue, last, key=urgency)
            queue[:end] = [request for request in queue[:end] if request.id not in gone]
        self.count()

    def emptied(self) -> list[Request]:
        """All that wait; afterwards none does."""
        waited, self.queue, self.timer = self.queue, [], float("inf")
        self.count()
        return waited

    def count(self) -> None:
        """Bring the pool's account of the work that waits here up to date."""
        waiting, planned, table, between_s = len(self.queue), self.planned, self.table, self.between_s
        rest = waiting % planned
        self.open_s = table[rest] + between_s if rest else 0.0
        work_s = waiting // planned * (table[planned] + between_s) + self.open_s
        self.place.waits(self.slo_class, work_s - self.work_s)
        self.work_s = work_s

    def more_s(self) -> float:
        """The device time that one more request takes: in the batch that waits to grow, else in one of its own."""
        waiting = len(self.queue) % self.planned
        return self.table[waiting + 1] - self.table[waiting] + (0.0 if waiting else self.between_s)

    def filled_s(self) -> float:
        """What a batch takes that one more request may be in: of all that wait, as far as one holds them."""
        return self.table[min(self.planned, len(self.queue) + 1)]

    def need(self, size: int) -> float:
        """The part of a batch's time that its requests would take in one as large as planned."""
        return min(1.0, size * self.device_s / (self.table[size] + self.between_s))

    def last_start(self, request: Request) -> float:
        """The last instant at which the route could answer the request in time."""
        return request.deadline - self.table[1] - self.overhead_s

    def look_again(self, request: Request, now: float, margin_s: float) -> float:
        """When a request that waits here may be better off elsewhere, if no device is free before.

        When the batch under way is so far overdue that the request would not be in time; failing that, at the last
        instant with and without margin.
        """
        due = max(now, self.first_free(now)) if self.devices else now
        last = self.last_start(request)
        soonest = float("inf")
        for instant in (max(due, (due + last - margin_s) / 2), last - margin_s, last):
            if now < instant < soonest:
                soonest = instant
        return soonest

    def room(self, request: Request, now: float, margin_s: float) -> int:
        """The largest batch that would end in time for the request if it started now; 0 if none."""
        return largest_batch(self.table, request.deadline - margin_s - now - self.overhead_s)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request is best given: `route` is None where no admissible one is up."""

    route: Route | None
    in_time: bool
    value: float  # accuracy net of the price of device time; of a route not in time −∞
    late_s: float = 0.0  # by how much it would be late for what waits before it, in a batch with what waits
    sure_late_s: float = 0.0  # the same in the last batch of those that wait, and overhead aside


def urgency(request: Request) -> tuple[float, int]:
    """The order in which requests are served: by deadline, then by age."""
    return request.deadline, request.id


def by_urgency(routes: Iterable[Route]) -> list[Route]:
    """Routes that some request waits for, the one with the most urgent head first."""
    return sorted(routes, key=lambda route: urgency(route.queue[0]))


def choose(
    request: Request, routes: Iterable[Route], now: float, margin_s: float, heads: Route | None = None
) -> Choice:
    """The route of greatest value that ends in time; else one that ends too late (`_least_work`).

    A route's value is `priority · accuracy − price · device time − 0.003 · (fraction of the request's time until the
    answer)` (docs/scheduling.md). When it would end is estimated behind all that waits already and is more urgent;
    of the route that it `heads`, nothing is.
    """
    best, best_value, best_s, best_wait_s = None, float("-inf"), 0.0, 0.0
    late: list[tuple[float, Route, float]] = []
    left_s = request.deadline - now
    in_time_s = left_s - margin_s
    hurry = DELAY / max(request.deadline - request.arrived, 1e-9)
    accuracy, least, priority = request.accuracy, request.min_accuracy, request.priority
    for route in routes:
        right = accuracy[route.index]
        net = priority * right - route.cost
        if right < least or net <= best_value:  # time can only make it worse
            continue
        batch_s = route.table[len(route.queue) % route.planned + 1]
        wait_s = route.first_free(now) - now if route is heads else route.start_s(now, left_s)
        takes_s = wait_s + batch_s + route.overhead_s
        if takes_s > in_time_s:
            late.append((takes_s, route, wait_s))
        elif (value := net - hurry * takes_s) > best_value:
            best, best_value, best_s, best_wait_s = route, value, takes_s, wait_s
    if best is not None:
        full_s = best_wait_s + best.filled_s() + best.overhead_s
        return Choice(best, True, best_value, full_s - in_time_s, best_s - best.overhead_s - in_time_s)
    if not late:
        return Choice(None, False, best_value)
    full_s = min([wait_s + route.filled_s() + route.overhead_s for _, route, wait_s in late])
    sure_s = min([takes_s - route.overhead_s for takes_s, route, _ in late])
    chosen = _least_work(late, request.deadline - request.arrived)
    return Choice(chosen, False, best_value, full_s - in_time_s, sure_s - in_time_s)


def _least_work(late: Sequence[tuple[float, Route, float]], time_s: float) -> Route:
    """Of routes that end too late, but not much later than the soonest, the one whose work grows least.

    The soonest itself would be one where nobody waits yet: each would go alone, and all would be later still.
    """
    until_s = min([takes_s for takes_s, _, _ in late]) + TOO_LATE * time_s
    return min((route for takes_s, route, _ in late if takes_s <= until_s), key=lambda route: route.more_s())


def shortest_s(request: Request, routes: Iterable[Route]) -> tuple[float, float]:
    """Device time of an admissible route, the least without and the least with overhead; infinite without a route."""
    sure_s = likely_s = float("inf")
    for route in routes:
        if request.accuracy[route.index] >= request.min_accuracy:
            alone_s = route.table[1]
            sure_s, likely_s = min(sure_s, alone_s), min(likely_s, alone_s + route.overhead_s)
    return sure_s, likely_s


def expiry(request: Request, shortest: tuple[float, float]) -> float:
    """The instant from which no admissible route that is up could answer in time even if a device were free.

    `shortest` is `shortest_s` of the request. Without a route it is the deadline: another may come up. Of the overhead
    no more is believed than half of the request's time leaves, since it may be a passing hiccup, and only trying tells.
    """
    sure_s, likely_s = shortest
    if sure_s == float("inf"):
        return request.deadline
    half_s = 0.5 * (request.deadline - request.arrived)
    return request.deadline - max(sure_s, min(likely_s, half_s)) + JUST_AFTER_S


def quickest(request: Request, routes: Iterable[Route]) -> Route | None:
    """The admissible route that could answer the request soonest if its devices were free."""
    admissible = (route for route in routes if request.accuracy[route.index] >= request.min_accuracy)
    return max(admissible, key=lambda route: route.last_start(request), default=None)


def doomed_heads(route: Route, requests: Sequence[Request], now: float, margin_s: float) -> tuple[int, int]:
    """How many requests to pass over, and how many fit before the deadline of the next; at least one.

    A head whose deadline leaves time only for a batch that is small, and dear for that, is served all the same, unless
    that would cut short the next batch too: then one after another would go alone and the queue would never drain
    (Nexus' early drop). Where devices are overloaded no head is worth it: what it takes is lost to more than one of
    the others.
    """
    waiting = len(requests)
    for first, head in enumerate(requests):
        size = route.room(head, now, margin_s)
        if size >= min(route.enough, waiting - first):
            return first, size
        if route.overloaded and first + 1 < waiting:
            continue
        size = max(1, size)
        later = now + (route.table[size] + route.between_s) / route.devices
        follower = requests[first + size] if first + size < waiting else None
        if follower is None or route.room(follower, later, margin_s) >= min(route.enough, waiting - first - size):
            return first, size
    raise AssertionError("the last request has no follower")
