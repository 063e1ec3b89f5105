"""From one placement to another: make before break, a few starts at a time, and always getting there."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import Catalogue
from planner.transition import Counts, counts, step
from planner.variants import Device
from tests.planner.driven import catalogue

K = catalogue()
TWO = catalogue(("k", "l"))
FAST, SLOW = ("e", "k/fast"), ("e", "k/slow")


def ask(
    wanted: Counts, up: Counts, asked: Counts | None = None, devices: int = 3, patient: bool = True, starts: int = 9
) -> Counts:
    return step(K, wanted, up, asked or {}, {"e": devices}, patient, starts)


def test_counts_are_by_pool_and_unit() -> None:
    devices = [Device("a", "e"), Device("b", "e"), Device("c", "f")]
    held = {"a": ("k/fast", "k/slow"), "b": ("k/fast",), "c": ("k/fast",), "gone": ("k/fast",)}
    assert counts(devices, held) == {FAST: 2, SLOW: 1, ("f", "k/fast"): 1}


def test_what_is_up_stays_until_what_is_wanted_is_up() -> None:
    assert ask({SLOW: 3}, {FAST: 3}) == {SLOW: 3, FAST: 3}
    assert ask({SLOW: 3}, {FAST: 3, SLOW: 2}) == {SLOW: 3, FAST: 3}
    assert ask({SLOW: 3}, {FAST: 3, SLOW: 3}) == {SLOW: 3}


def test_where_memory_cannot_hold_both_the_unwanted_makes_room_but_for_one_copy() -> None:
    tight = catalogue(memory_bytes=1)
    assert step(tight, {SLOW: 3}, {FAST: 3}, {}, {"e": 3}, True, 9) == {SLOW: 2, FAST: 1}
    assert step(tight, {SLOW: 3}, {FAST: 1, SLOW: 2}, {}, {"e": 3}, True, 9) == {SLOW: 3}


def test_no_more_makes_room_than_the_copies_need_that_start_now() -> None:
    tight = catalogue(memory_bytes=1)
    assert step(tight, {SLOW: 6}, {FAST: 6}, {}, {"e": 6}, True, 1) == {SLOW: 1, FAST: 5}
    assert step(tight, {SLOW: 6}, {FAST: 5}, {SLOW: 1, FAST: 5}, {"e": 6}, True, 1) == {SLOW: 1, FAST: 5}
    assert step(tight, {SLOW: 6}, {FAST: 5, SLOW: 1}, {SLOW: 1, FAST: 5}, {"e": 6}, True, 1) == {SLOW: 2, FAST: 4}


def test_what_was_let_go_is_not_asked_back_while_it_is_still_seen() -> None:
    tight = catalogue(memory_bytes=1)
    assert step(tight, {SLOW: 6}, {FAST: 6}, {SLOW: 1, FAST: 5}, {"e": 6}, True, 1) == {SLOW: 1, FAST: 5}


def test_room_is_made_by_the_application_that_keeps_the_most_of_what_it_needs() -> None:
    tight = catalogue(("k", "l"), memory_bytes=1)
    wanted = {SLOW: 2, FAST: 1, ("e", "l/slow"): 4, ("e", "l/fast"): 1}
    up = {FAST: 6, ("e", "l/fast"): 2}  # k has far more than it needs of its fast unit
    asked = step(tight, wanted, up, {}, {"e": 8}, True, 1)
    assert asked[FAST] == 5
    assert asked["e", "l/fast"] == 2
    assert asked["e", "l/slow"] == 1, "what lacks most starts first"


def test_as_many_start_at_a_time_for_each_host_full_of_devices() -> None:
    assert ask({FAST: 1, SLOW: 20}, {FAST: 1}, devices=40, starts=1) == {FAST: 1, SLOW: 5}
    assert ask({FAST: 1, SLOW: 20}, {FAST: 1}, devices=8, starts=2) == {FAST: 1, SLOW: 2}


def test_without_patience_all_goes_only_where_something_lacks() -> None:
    table = replace(K, pools={**K.pools, "f": replace(K.pools["e"], name="f")})
    up = {FAST: 3, SLOW: 1, ("f", "k/fast"): 3, ("f", "k/slow"): 1}
    asked = step(table, {SLOW: 3, ("f", "k/slow"): 1}, up, {}, {"e": 3, "f": 3}, False, 1)
    assert asked == {SLOW: 2, ("f", "k/fast"): 3, ("f", "k/slow"): 1}


def test_a_copy_too_many_goes_even_if_no_other_unit_answers_yet() -> None:
    tight = catalogue(memory_bytes=1)
    assert step(tight, {FAST: 1, SLOW: 2}, {FAST: 3}, {}, {"e": 3}, True, 9) == {FAST: 1, SLOW: 2}


def test_when_patience_ends_the_unwanted_goes_but_never_the_last_copy() -> None:
    assert ask({SLOW: 2}, {FAST: 2}, patient=False) == {SLOW: 2, FAST: 1}


def test_only_so_many_copies_start_at_a_time_while_requests_are_answered() -> None:
    assert ask({FAST: 1, SLOW: 3}, {FAST: 1}, starts=1) == {FAST: 1, SLOW: 1}
    assert ask({FAST: 1, SLOW: 3}, {FAST: 1, SLOW: 1}, {FAST: 1, SLOW: 1}, starts=1) == {FAST: 1, SLOW: 2}


def test_everything_starts_at_once_while_nothing_is_answered() -> None:
    assert ask({FAST: 3, SLOW: 3}, {}, starts=1) == {FAST: 3, SLOW: 3}


def test_an_application_that_nothing_is_wanted_for_does_not_lift_the_limit() -> None:
    assert step(TWO, {FAST: 1, SLOW: 3}, {FAST: 1}, {}, {"e": 3}, True, 1) == {FAST: 1, SLOW: 1}


def test_a_start_that_is_asked_for_is_not_taken_back() -> None:
    assert ask({FAST: 2, SLOW: 2}, {FAST: 1}, {FAST: 1, SLOW: 2}, starts=1) == {FAST: 1, SLOW: 2}


def settle(table: Catalogue, wanted: Counts, held: dict[str, set[str]], starts: int) -> list[dict[str, set[str]]]:
    """What devices of pool 'e' hold, step by step, until exactly the wanted counts are up."""
    size = table.pools["e"].memory_bytes
    seen, asked = [{name: set(units) for name, units in held.items()}], Counts()
    devices = [Device(name, "e") for name in held]
    for turn in range(60):
        up = counts(devices, {name: frozenset(units) for name, units in held.items()})
        if up == wanted and asked == wanted:
            return seen
        asked = step(table, wanted, up, asked, {"e": len(held)}, turn < 20, starts)
        for unit in table.units:
            target = asked.get(("e", unit), 0)
            holders = sorted((n for n in held if unit in held[n]), key=lambda n: -len(held[n]))
            for name in holders[: max(0, len(holders) - target)]:
                held[name].discard(unit)
        seen.append({name: set(units) for name, units in held.items()})
        for unit in table.units:  # started one turn after it was asked for, where there is room
            missing = asked.get(("e", unit), 0) - sum(unit in units for units in held.values())
            room = [n for n in held if unit not in held[n] and len(held[n]) < size]
            for name in room[: max(0, missing)]:
                held[name].add(unit)
        seen.append({name: set(units) for name, units in held.items()})
    raise AssertionError(f"not settled: wanted {wanted}, asked {asked}, held {held}")


placements = st.lists(st.frozensets(st.sampled_from(sorted(TWO.units)), max_size=2), min_size=2, max_size=4)


@settings(deadline=None)
@given(before=placements, after=placements, starts=st.integers(1, 3))
def test_every_change_settles_and_leaves_no_application_unanswered(
    before: list[frozenset[str]], after: list[frozenset[str]], starts: int
) -> None:
    size = min(len(before), len(after))
    held = {f"d{i}": set(before[i]) for i in range(size)}
    held |= {"spare": set()}
    wanted = counts([Device(f"d{i}", "e") for i in range(size)], {f"d{i}": after[i] for i in range(size)})
    names = [k for k in TWO.applications if any(u in TWO.units_of(k) for _, u in wanted)]
    seen = settle(TWO, wanted, held, starts)
    for name in names:
        answered = [any(unit in TWO.units_of(name) for units in now.values() for unit in units) for now in seen]
        assert answered == sorted(answered), "once answered, always answered"


@pytest.mark.parametrize("starts", [1, 3])
def test_a_full_swap_never_empties_more_than_what_starts(starts: int) -> None:
    tight = catalogue(memory_bytes=1)
    seen = settle(tight, {SLOW: 6}, {f"d{i}": {"k/fast"} for i in range(6)}, starts)
    assert min(sum(bool(units) for units in now.values()) for now in seen) >= 6 - starts


@pytest.mark.parametrize("starts", [1, 2, 9])
def test_a_full_swap_on_full_devices_settles(starts: int) -> None:
    tight = catalogue(memory_bytes=1)
    seen = settle(tight, {SLOW: 3}, {f"d{i}": {"k/fast"} for i in range(3)}, starts)
    assert all(any(units for units in now.values()) for now in seen)


def test_the_replacement_of_a_last_copy_that_takes_the_room_starts_before_others() -> None:
    wanted = {FAST: 2, SLOW: 1, ("e", "l/slow"): 1}
    up = {FAST: 1, ("e", "l/fast"): 1}
    assert step(TWO, wanted, up, {}, {"e": 2}, True, 9) == {FAST: 1, ("e", "l/fast"): 1, ("e", "l/slow"): 1}


def test_a_last_copy_of_which_nothing_is_wanted_goes_when_patience_ends() -> None:
    assert step(TWO, {FAST: 2}, {("e", "l/fast"): 1}, {}, {"e": 2}, False, 9) == {FAST: 2}
