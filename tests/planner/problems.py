"""Small problems for the tests: one by hand, and a strategy that draws them at random."""

from hypothesis import strategies as st

from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.variants import Application, Link, Option, Pool, PowerBudget, Unit, plain_option


def one_application(
    variants: dict[str, tuple[float, float]],  # name -> (seconds per request, accuracy)
    demand_rps: float,
    devices: int = 1,
    floor: float | None = None,
) -> Problem:
    """Application 'k' on pool 'e' with memory for everything, no overhead, and all device time to give."""
    units = tuple(Unit(f"k/{name}", "k", 1, 0.0) for name in variants)
    return Problem(
        applications=(Application("k", 2, 0.1, floor),),
        units=units,
        options=tuple(plain_option(unit, (1.0, 1.0)) for unit in units),
        pools=(Pool("e", devices, 100),),
        latency={(f"k/{name}", "e"): LatencyCurve((1,), (s,)) for name, (s, _) in variants.items()},
        demand_rps={"k": demand_rps},
        accuracy={f"k/{name}": (accuracy,) for name, (_, accuracy) in variants.items()},
        utilisation=1.0,
    )


TEXTBOOK = one_application({"best": (0.010, 0.9), "cheap": (0.002, 0.7)}, 200.0)

fractions = st.integers(30, 100).map(lambda percent: percent / 100)


@st.composite
def problems(
    draw: st.DrawFn, max_devices: int = 3, walks: bool = True, floors: bool = True, limits: bool = True
) -> Problem:
    """One or two applications with up to three variants each, on one or two pools of unlike memory and speed."""
    names = [f"a{i}" for i in range(draw(st.integers(1, 2)))]
    floor = st.sampled_from([None, 0.6, 0.9]) if floors else st.none()
    applications = tuple(Application(name, 2, draw(st.sampled_from([0.03, 0.1])), draw(floor)) for name in names)
    units = tuple(
        Unit(f"{name}/{v}", name, draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 2.0])))
        for name in names
        for v in range(draw(st.integers(1, 3)))
    )
    options = [plain_option(unit, (1.0, 1.0)) for unit in units]
    if walks and len(units) > 1 and units[0].application == units[1].application and draw(st.booleans()):
        options.append(
            Option("cascade", units[0].application, ((units[0].name, 1.0), (units[1].name, 0.4)), (1.0, 1.0))
        )
    pools = tuple(
        Pool(f"p{i}", draw(st.integers(0, max_devices)), draw(st.integers(2, 9)), draw(st.sampled_from([0.0, 0.25])))
        for i in range(draw(st.integers(1, 2)))
    )
    cells = {name: draw(st.sampled_from([(1.0,), (0.25, 0.75)])) for name in names}
    limited = draw(st.booleans()) if limits else False
    return Problem(
        applications,
        units,
        tuple(options),
        pools,
        latency={(unit.name, pool.name): draw(curves()) for unit in units for pool in pools},
        demand_rps={name: float(draw(st.integers(0, 300))) for name in names},
        accuracy={o.name: tuple(draw(fractions) for _ in cells[o.application]) for o in options},
        cells=cells,
        loaded={(pools[0].name, units[0].name): min(1, pools[0].devices)},
        energy_j={(unit.name, pool.name): float(draw(st.integers(0, 3))) for unit in units for pool in pools},
        power=(PowerBudget(tuple(p.name for p in pools), draw(st.sampled_from([50.0, 300.0]))),) if limited else (),
        wire_bytes={o.name: 1e4 * draw(st.integers(0, 3)) for o in options},
        links=(Link("gateway", (names[0],), draw(st.sampled_from([5e5, 5e6]))),) if limited else (),
        min_share={options[0].name: 0.1} if limited else {},
        max_share={options[-1].name: 0.7} if limited and len(options) > 1 else {},
    )


@st.composite
def curves(draw: st.DrawFn) -> LatencyCurve:
    """A millisecond-scale latency curve; a batch of four takes one to four times as long as one request."""
    single = draw(st.integers(1, 25)) / 1000
    return LatencyCurve((1, 4), (single, single * draw(st.sampled_from([1.0, 2.0, 4.0]))))
