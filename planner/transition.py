"""From the placement that is up to the one that is wanted: make before break, where memory allows."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil, inf

from planner.catalogue import Catalogue
from planner.profiles import LatencyCurve
from planner.variants import Device

Key = tuple[str, str]  # (pool, unit)
Counts = dict[Key, int]  # devices that hold it

HOST = 8  # devices, about, that share a processor which serves as well: for so many, `starts` copies start at a time


def counts(devices: Sequence[Device], held: Mapping[str, tuple[str, ...] | frozenset[str]]) -> Counts:
    """How many devices of each pool hold each unit."""
    alike = Counter((device.pool, held.get(device.name, ())) for device in devices)  # many hold the same
    total: Counts = {}
    for (pool, units), n in alike.items():
        for unit in units:
            total[pool, unit] = total.get((pool, unit), 0) + n
    return total


def step(
    catalogue: Catalogue,
    wanted: Counts,
    up: Counts,
    asked: Counts,
    devices: Mapping[str, int],
    patient: bool,
    starts: int,
) -> Counts:
    """Replica counts to ask for now, on the way from `up` to `wanted`, after `asked` was asked for last.

    What is up stays until everything wanted is up too. Where a pool's memory cannot hold both, just so much goes as
    the copies need that start now, of the applications that keep the most; but never the last copy that answers an
    application of which anything is wanted. Where such copies take the room, those that will replace them start before
    others. While every application is answered, `starts` copies start at a time for each `HOST` devices, those of the
    applications that lack the most first: starting one takes the processor from those that serve. A start that was
    asked for and is still wanted is never taken back. When patience is at an end (a copy that finds no device with
    room for it waits for ever) all goes at once that is not wanted any more, in the pools that lack something.
    """
    if all(up.get(key, 0) >= n for key, n in wanted.items()):
        return dict(wanted)
    change = _Change(catalogue, wanted, up, asked, devices)
    if not patient:
        change.make_room()
    if change.answered:
        change.start(starts * ceil(sum(devices.values()) / HOST), patient)
    else:
        change.start(inf, patient)
    return {key: n for key, n in change.target.items() if n > 0}


class _Change:
    """The counts to ask for, from those that stay or start already; copies are added and let go one by one."""

    def __init__(
        self, catalogue: Catalogue, wanted: Counts, up: Counts, asked: Counts, devices: Mapping[str, int]
    ) -> None:
        self._wanted, self._up = wanted, up
        self._app = {key: catalogue.units[key[1]].application for key in wanted.keys() | up.keys()}
        self._size = {key: catalogue.units[key[1]].memory_bytes for key in self._app}
        self._rate_rps = {key: _rate_rps(catalogue, key) for key in self._app}
        self._keys: dict[str, list[Key]] = {}  # by application
        for key in sorted(self._app):
            self._keys.setdefault(self._app[key], []).append(key)
        self._needed = {name: self._rps(name, wanted) for name in self._keys}
        self.target = {key: self._kept_of(key, asked) for key in sorted(self._app)}
        self._begun = {n: any(self.target[key] for key in keys if key in wanted) for n, keys in self._keys.items()}
        self._asked_rps = {name: self._rps(name, self.target) for name in self._keys}
        self._staying = {
            name: sum(min(self.target[key], up.get(key, 0)) for key in keys) for name, keys in self._keys.items()
        }
        self._starting = sum(max(0, n - up.get(key, 0)) for key, n in self.target.items())
        answerable = {self._app[key] for key in wanted}
        self._answerable = answerable
        self._unanswered = {name for name in answerable if not any(up.get(key, 0) > 0 for key in self._keys[name])}
        self._replaced = {
            name for name in answerable if not any(up.get(k, 0) and k in wanted for k in self._keys[name])
        }
        memory = {pool: count * catalogue.pools[pool].memory_bytes for pool, count in devices.items()}
        used = self._used(self.target)
        self._room = {pool: size - used[pool] for pool, size in memory.items()}
        used = self._used({key: max(n, wanted.get(key, 0)) for key, n in self.target.items()})
        self._roomy = {pool for pool, size in memory.items() if used[pool] <= size}
        used = self._used({key: self._least(key) for key in self.target})
        self._tight = {pool for pool, size in memory.items() if used[pool] > size}

    @property
    def answered(self) -> bool:
        """Whether every application of which anything is wanted is answered now."""
        return not self._unanswered

    def make_room(self) -> None:
        """Lets everything go that is not wanted, where something wanted lacks; of what is still wanted not the last."""
        for pool in {key[0] for key, n in self._wanted.items() if self._up.get(key, 0) < n}:
            for key in [key for key in self.target if key[0] == pool]:
                while self.target[key] > self._wanted.get(key, 0) and (
                    self._app[key] not in self._answerable or not self._last(key)
                ):
                    self._add(key, -1)

    def start(self, most: float, patient: bool) -> None:
        """Adds copies, no more than `most` with those that start already, and lets go what takes their room."""
        most -= self._starting
        lacking = {key for key, n in self._wanted.items() if self.target[key] < n}
        first = {key for key in lacking if self._app[key] in self._replaced}
        pools = {key[0] for key, n in self._wanted.items() if self._app[key] in self._replaced} & self._tight
        lacking -= {key for key in lacking - first if key[0] in pools}
        if most == inf:
            lacking -= {key for key in lacking if self._all_start(key)}
        left: dict[str, deque[Key]] = {}  # by application, in order
        for key in sorted(lacking):
            left.setdefault(self._app[key], deque()).append(key)
        while left and most > 0:
            name = min(left, key=lambda name: (*self._urgency(name), left[name][0]))
            key = left[name][0]
            fits = self._fits(key, self.answered or name in self._unanswered) or not patient
            if fits:
                self._add(key, 1)
                most -= 1
            if not fits or self.target[key] == self._wanted[key]:
                left[name].popleft()
                if not left[name]:
                    del left[name]

    def _all_start(self, key: Key) -> bool:
        """Starts all that lacks of a unit at once where its pool has room for all that lacks; whether it did."""
        if key[0] not in self._roomy:
            return False
        self._add(key, self._wanted[key] - self.target[key])
        return True

    def _kept_of(self, key: Key, asked: Counts) -> int:
        """What is up or starting of a unit, less what is not wanted and was let go before."""
        up, wanted = self._up.get(key, 0), self._wanted.get(key, 0)
        if up <= wanted:
            return min(wanted, max(up, asked.get(key, 0)))
        return max(wanted, min(up, asked.get(key, 0))) if asked else up

    def _urgency(self, name: str) -> tuple[bool, float]:
        """Applications with nothing that is wanted come first, then those that have the least of what they need."""
        needed = self._needed[name]
        return self._begun[name], self._asked_rps[name] / needed if needed else 0.0

    def _fits(self, key: Key, release: bool) -> bool:
        """Whether there is room for a copy, if need be after letting others go; in vain none is let go."""
        pool = key[0]
        gone: list[Key] = []
        while self._room[pool] < self._size[key]:
            able = [k for k in self.target if k[0] == pool and self._spare(k)] if release else []
            if not able:
                for k in gone:
                    self._add(k, 1)
                return False
            gone.append(max(able, key=self._kept))
            self._add(gone[-1], -1)
        return True

    def _kept(self, key: Key) -> tuple[float, int, Key]:
        """What its application keeps, of what it needs, when a copy goes; of equals the largest goes first."""
        name, needed = self._app[key], self._needed[self._app[key]]
        serving = sum(self._rate_rps[k] * min(self.target[k], self._up.get(k, 0)) for k in self._keys[name])
        return (serving - self._rate_rps[key]) / needed if needed else inf, self._size[key], key

    def _spare(self, key: Key) -> bool:
        return self.target[key] > self._wanted.get(key, 0) and self._up.get(key, 0) > 0 and not self._last(key)

    def _last(self, key: Key) -> bool:
        """Whether giving up one more would leave its application without a copy that is up and stays."""
        return self._staying[self._app[key]] <= 1

    def _least(self, key: Key) -> int:
        """What must be held of a unit at least: what is wanted, or one that nothing wanted replaces yet."""
        mates = self._keys[self._app[key]]
        alone = self._up.get(key, 0) > 0 and not any(self._up.get(k, 0) for k in mates if k != key)
        return max(self._wanted.get(key, 0), int(alone))

    def _rps(self, name: str, held: Counts) -> float:
        return sum(self._rate_rps[key] * held.get(key, 0) for key in self._keys[name])

    def _used(self, held: Counts) -> Counter[str]:
        """Bytes by pool."""
        used: Counter[str] = Counter()
        for key, n in held.items():
            used[key[0]] += n * self._size[key]
        return used

    def _add(self, key: Key, copies: int) -> None:
        name, before = self._app[key], min(self.target[key], self._up.get(key, 0))
        self.target[key] += copies
        self._room[key[0]] -= copies * self._size[key]
        self._asked_rps[name] += copies * self._rate_rps[key]
        self._staying[name] += min(self.target[key], self._up.get(key, 0)) - before
        self._begun[name] |= copies > 0


def _rate_rps(catalogue: Catalogue, key: Key) -> float:
    """Requests/s that a device answers with a unit in the largest batches that are in time."""
    pool, unit = key
    curve = catalogue.latency.get((unit, pool))
    slo_s = catalogue.applications[catalogue.units[unit].application].slo_s
    return 0.0 if curve is None else _fastest_rps(curve, slo_s)


@lru_cache(maxsize=16_384)  # asked for anew with every step of the way
def _fastest_rps(curve: LatencyCurve, slo_s: float) -> float:
    pairs = list(zip(curve.batches, curve.latency_s, strict=True))
    return max((size / time_s for size, time_s in pairs if time_s <= slo_s), default=pairs[0][0] / pairs[0][1])
