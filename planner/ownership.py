"""Which router has which device, where there are several routers: each decides alone on devices of its own.

Two routers that both believed a device theirs would queue batches behind each other's and promise what neither can
keep. Connections are spread evenly over the routers, so each gets an even part of every pool, and must be able to
answer every application that anyone can.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Units = frozenset[str]


def divide(
    loaded: Mapping[str, Units],
    pools: Mapping[str, str],
    routers: Sequence[str],
    applications: Mapping[str, Units],
    before: Mapping[str, str],
) -> dict[str, str]:
    """The router of each device.

    Args:
        loaded: the units that each device holds.
        pools: the pool of each device.
        routers: those that are up. The first are used if there is not enough for all: one that could not answer some
            application gets no device, and takes over when another is gone.
        applications: the units that answer each.
        before: the division so far; as few devices as may be change hands.
    """
    answers = {device: frozenset(answerable([units], applications)) for device, units in loaded.items()}
    order = sorted(routers, key=lambda router: (router not in before.values(), router))
    able = Counter(name for names in answers.values() for name in names)
    for count in range(min([len(order), *able.values()]), 1, -1):  # each needs a device for each application
        for keep in (before, {}):
            deal = _Deal(answers, pools, order[:count], keep)
            if not deal.lack():
                return deal.owners
    return dict.fromkeys(loaded, order[0]) if order else {}


def answerable(loaded: Iterable[Units], applications: Mapping[str, Units]) -> set[str]:
    """The applications that some of these devices can answer."""
    up: set[str] = set().union(*loaded)
    return {name for name, units in applications.items() if units & up}


class _Deal:
    """Even parts of every pool: devices stay where they were, the others go to who lacks most of what they answer.

    Then routers exchange devices of a pool for as long as that makes more applications answerable to one of them.
    """

    def __init__(
        self,
        answers: Mapping[str, frozenset[str]],
        pools: Mapping[str, str],
        routers: Sequence[str],
        before: Mapping[str, str],
    ) -> None:
        self.owners: dict[str, str] = {}
        self._answers, self._pools, self._routers = answers, pools, routers
        self._sizes = Counter(pools[device] for device in answers)
        self._here: Counter[tuple[str, str]] = Counter()  # devices by router and pool
        self._held: Counter[str] = Counter()  # devices by router
        self._able: dict[str, Counter[str]] = {router: Counter() for router in routers}  # devices by application
        self._all: frozenset[str] = frozenset().union(*answers.values())
        # What answers few applications first: who gets it matters, and the rest fills the gaps.
        self._order = sorted(answers, key=lambda device: (pools[device], len(answers[device]), device))
        for device in self._order:
            if before.get(device) in self._room(pools[device]):
                self._give(device, before[device])
        for device in self._order:
            if device not in self.owners:
                self._give(device, self._neediest(device))
        while self._exchange():
            pass

    def lack(self) -> int:
        """How often a router cannot answer an application that somebody can."""
        return sum(len(self._lacking(router)) for router in self._routers)

    def _lacking(self, router: str) -> set[str]:
        return {name for name in self._all if not self._able[router][name]}

    def _room(self, pool: str) -> list[str]:
        """The routers that may have one more device of the pool."""
        fewest, extra = divmod(self._sizes[pool], len(self._routers))
        extra -= sum(self._here[router, pool] > fewest for router in self._routers)
        return [router for router in self._routers if self._here[router, pool] < fewest + (extra > 0)]

    def _neediest(self, device: str) -> str:
        def need(router: str) -> tuple[int, int, str]:
            return -len(self._answers[device] & self._lacking(router)), self._held[router], router

        return min(self._room(self._pools[device]), key=need)

    def _give(self, device: str, router: str) -> None:
        former = self.owners.get(device)
        for owner, change in ((former, -1), (router, 1)):
            if owner is not None:
                self._here[owner, self._pools[device]] += change
                self._held[owner] += change
                self._able[owner].update(dict.fromkeys(self._answers[device], change))
        self.owners[device] = router

    def _exchange(self) -> bool:
        """Make one exchange that helps; whether there was any."""
        lack = self.lack()
        for router in self._routers:
            lacking = self._lacking(router)
            for wanted in self._order:
                owner = self.owners[wanted]
                if not lacking & self._answers[wanted] or owner == router:
                    continue
                for given in self._price(wanted, router):
                    self._swap(wanted, router, given, owner)
                    if self.lack() < lack:
                        return True
                    self._swap(wanted, owner, given, router)
        return False

    def _price(self, wanted: str, router: str) -> list[str | None]:
        """What the router may give for a device so that parts stay even; None where it has one less."""
        pool = self._pools[wanted]
        own = [d for d in self._order if self._pools[d] == pool and self.owners[d] == router]
        less = self._here[router, pool] < self._here[self.owners[wanted], pool]
        return [*([None] if less else []), *own]

    def _swap(self, one: str, to: str, other: str | None, back: str) -> None:
        self._give(one, to)
        if other is not None:
            self._give(other, back)
