"""Counts are given seats on devices: as many as fit, and no device holds more than it has room for."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from planner.catalogue import Catalogue
from planner.profiles import LatencyCurve
from planner.seating import seated
from planner.transition import counts
from planner.variants import Application, Device, Pool, Unit, plain_option

SIZES = {"small": 3, "middle": 5, "large": 10}
UNITS = {name: Unit(name, "digits", size, 1.0) for name, size in SIZES.items()}
CATALOGUE = Catalogue(
    applications={"digits": Application("digits", 1, 1.0)},
    options={"digits": tuple(plain_option(unit, ()) for unit in UNITS.values())},
    units=UNITS,
    pools={"cpu": Pool("cpu", 4, 10)},
    latency={(name, "cpu"): LatencyCurve((1,), (0.1,)) for name in SIZES},
    accuracy=dict.fromkeys(SIZES, 0.9),
)
DEVICES = tuple(Device(f"cpu-{i}", "cpu") for i in range(4))


def test_counts_that_fit_are_all_seated() -> None:
    copies = {("cpu", "large"): 2, ("cpu", "middle"): 2, ("cpu", "small"): 2}
    assert counts(DEVICES, seated(CATALOGUE, DEVICES, copies)) == copies


@given(st.fixed_dictionaries({("cpu", name): st.integers(0, 6) for name in SIZES}))
def test_no_device_holds_more_than_it_has_room_for(copies: dict[tuple[str, str], int]) -> None:
    held = seated(CATALOGUE, DEVICES, copies)
    assert held.keys() == {device.name for device in DEVICES}
    assert all(sum(SIZES[unit] for unit in units) <= 10 for units in held.values())
    assert all(n <= copies[key] for key, n in counts(DEVICES, held).items())


def test_devices_of_other_pools_are_left_alone() -> None:
    both = replace(CATALOGUE, pools={**CATALOGUE.pools, "gpu": Pool("gpu", 1, 10)})
    devices = (Device("gpu-0", "gpu"), *DEVICES)
    assert seated(both, devices, {("cpu", "large"): 1}) == {
        "gpu-0": frozenset(),
        "cpu-0": {"large"},
        "cpu-1": frozenset(),
        "cpu-2": frozenset(),
        "cpu-3": frozenset(),
    }
