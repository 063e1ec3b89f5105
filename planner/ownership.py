"""Which router has which device, where there are several routers: each decides alone on devices of its own.

Two routers that both believed a device theirs would queue batches behind each other's and promise what neither can
keep. Connections are spread evenly over the routers, so each gets an even part of every pool, and must be able to
answer every application that anyone can.
"""

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
    order = sorted(routers, key=lambda router: (router not in before.values(), router))
    for count in range(len(order), 1, -1):
        owners = _deal(loaded, pools, order[:count], applications, before)
        if not any(_lacking(router, owners, loaded, applications) for router in order[:count]):
            return owners
    return dict.fromkeys(loaded, order[0]) if order else {}


def answerable(loaded: Iterable[Units], applications: Mapping[str, Units]) -> set[str]:
    """The applications that some of these devices can answer."""
    up: set[str] = set().union(*loaded)
    return {name for name, units in applications.items() if units & up}


def _deal(
    loaded: Mapping[str, Units],
    pools: Mapping[str, str],
    routers: Sequence[str],
    applications: Mapping[str, Units],
    before: Mapping[str, str],
) -> dict[str, str]:
    """Even parts of every pool; a device goes to who lacks most of what it answers, then to who had it."""
    owners: dict[str, str] = {}
    held = dict.fromkeys(routers, 0)
    covered: dict[str, set[str]] = {router: set() for router in routers}
    for pool in sorted(set(pools.values())):
        devices = sorted(device for device in loaded if pools[device] == pool)
        most = -(-len(devices) // len(routers))
        fewest = len(devices) // len(routers)
        extra = len(devices) - fewest * len(routers)  # so many routers may have one more
        here = dict.fromkeys(routers, 0)
        # What answers few applications first: who gets it matters, and the rest fills the gaps.
        for device in sorted(devices, key=lambda d: (len(answerable([loaded[d]], applications)), d)):
            answers = answerable([loaded[device]], applications)
            free = [r for r in routers if here[r] < fewest or (here[r] < most and extra > 0)]
            router = min(free, key=lambda r: (-len(answers - covered[r]), before.get(device) != r, held[r], r))
            extra -= here[router] == fewest
            owners[device] = router
            here[router] += 1
            held[router] += 1
            covered[router] |= answers
    return owners


def _lacking(
    router: str, owners: Mapping[str, str], loaded: Mapping[str, Units], applications: Mapping[str, Units]
) -> set[str]:
    """The applications that somebody can answer and this router cannot."""
    mine = [units for device, units in loaded.items() if owners[device] == router]
    return answerable(loaded.values(), applications) - answerable(mine, applications)
