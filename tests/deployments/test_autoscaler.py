"""An autoscaler and choosers around one board: what is counted, planned, told and let go, turn by turn."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from deployments.autoscaler import DRAIN_S, FORGET_S, Autoscaler, Seen, complaints, devices_of
from deployments.board import Notice, Tally
from deployments.chooser import Chooser
from deployments.scaled import Scaling, read_scaling

SEEN = Seen(running=0, least=0, most=2, delay_s=0.0)
LOOK_S = 0.25


def scaling(**more: Any) -> Scaling:
    variants = {
        "small": {"accuracy": 0.8, "seconds": 0.005, "load_s": 1.0},
        "large": {"accuracy": 0.95, "seconds": 0.1, "load_s": 1.0},
    }
    told = {"pools": {"cpu": {"devices": 2}}, "applications": {"digits": {"slo_s": 1.0, "variants": variants}}}
    return read_scaling({**told, **more})


@dataclass
class Memory:
    """A board that everybody sees at once."""

    said: Notice | None = None
    told: dict[str, Tally] = field(default_factory=dict)

    def post(self, notice: Notice) -> None:
        self.said = notice

    def notice(self) -> Notice | None:
        return self.said

    def tell(self, chooser: str, tally: Tally) -> None:
        self.told[chooser] = tally

    def tallies(self) -> dict[str, Tally]:
        return dict(self.told)

    def forget(self, chooser: str) -> None:
        del self.told[chooser]

    def clear(self) -> None:
        self.said = None
        self.told.clear()


@dataclass
class Site:
    """A Serve application on two devices whose replicas come up within a turn, while there is room."""

    board: Memory = field(default_factory=Memory)
    scaling: Scaling = field(default_factory=scaling)
    now: float = 100.0
    running: dict[str, int] = field(default_factory=lambda: {"small": 0, "large": 0})
    asked: Counter[str] = field(default_factory=Counter)
    takes_s: dict[str, float] = field(default_factory=lambda: {"small": 0.005, "large": 0.1})

    def __post_init__(self) -> None:
        self.autoscaler = Autoscaler("site", self.scaling, self.board, self.now)
        self.chooser = Chooser("digits", "large", self.board, clock=lambda: self.clock)
        self.clock = 0.0  # of the chooser
        self.begun = self.now

    def turn(self, rate_rps: float, late: bool = False) -> None:
        self.now += LOOK_S
        for _ in range(round(rate_rps * LOOK_S)):
            with self.chooser.choose(within_s=-1.0 if late else None) as variant:
                self.asked[variant] += 1
                self.clock += self.takes_s[variant]
        self.chooser.exchange("me", self.now - self.begun)
        self.autoscaler.see({name: replace(SEEN, running=n) for name, n in self.running.items()})
        self.autoscaler.turn(self.now, devices_of(self.scaling, None))
        for name, n in self.autoscaler.wanted.items():
            self.running[name] = min(n, self.running[name])
        for name, n in self.autoscaler.wanted.items():
            self.running[name] = min(n, 2 - sum(self.running.values()) + self.running[name])

    def run(self, seconds: float, rate_rps: float) -> Counter[str]:
        self.asked.clear()
        for _ in range(round(seconds / LOOK_S)):
            self.turn(rate_rps)
        return self.asked


def test_few_requests_go_to_the_accurate_variant_many_to_the_cheap_and_back() -> None:
    site = Site()
    site.run(10, 4)
    assert site.run(5, 4).keys() == {"large"}
    site.run(10, 60)
    much = site.run(5, 60)
    assert much["small"] > 4 * much["large"]
    site.run(40, 4)
    assert site.run(5, 4).keys() == {"large"}


def test_what_the_plan_expects_is_what_the_choosers_do() -> None:
    site = Site()
    site.run(15, 60)
    asked = site.run(10, 60)
    assert site.board.said is not None
    mean = (0.8 * asked["small"] + 0.95 * asked["large"]) / asked.total()
    assert mean == pytest.approx(site.board.said.accuracy["digits"], abs=0.02)
    assert site.board.said.demand_rps["digits"] == pytest.approx(60, rel=0.1)


def test_a_replica_is_let_go_only_when_no_chooser_sends_there_any_more() -> None:
    site = Site()
    site.run(15, 2)
    before = dict(site.running)
    assert before["large"] == 2 or before == {"small": 1, "large": 1}
    site.autoscaler.wanted = {"small": 2, "large": 0}  # as if a plan long ago had wanted it
    site.running = {"small": 2, "large": 0}
    left: dict[str, float] = {}
    gone: dict[str, float] = {}
    for _ in range(80):
        site.turn(2)
        guide = site.board.said and site.board.said.guides.get("digits")
        arms = {arm.name: arm.replicas for arm in guide.arms} if guide else {}
        if arms.get("small", 0) < 2:
            left.setdefault("small", site.now)
        if site.autoscaler.wanted["small"] < 2:
            gone.setdefault("small", site.now)
    assert site.running["large"] >= 1
    assert gone["small"] - left["small"] >= DRAIN_S - LOOK_S


def test_violations_make_plans_leave_more_room() -> None:
    site = Site()
    site.run(10, 30)
    before = site.board.said and site.board.said.utilisation
    for _ in range(200):
        site.turn(30, late=True)
    after = site.board.said and site.board.said.utilisation
    assert before is not None
    assert after is not None
    assert after < before


def test_a_variant_that_is_faster_than_told_gets_more_of_the_requests() -> None:
    site = Site()
    site.run(20, 60)
    assert site.run(10, 60)["small"] > 0
    site.takes_s["large"] = 0.02
    site.run(40, 60)
    assert site.board.said is not None
    assert site.board.said.pace["large"] == pytest.approx(0.2, rel=0.1)
    assert site.run(10, 60).keys() == {"large"}


def test_a_variant_that_is_slower_again_is_believed_to_be() -> None:
    site = Site()
    site.takes_s["large"] = 0.02
    site.run(40, 60)
    assert site.run(10, 60)["small"] == 0
    site.takes_s["large"] = 0.1
    site.run(60, 60)
    assert site.board.said is not None
    assert site.board.said.pace["large"] == pytest.approx(1.0, abs=0.01)
    assert site.run(10, 60)["small"] > 300


def test_batches_are_believed_as_told() -> None:
    batches = {
        "small": {"accuracy": 0.8, "seconds": 0.005},
        "large": {"accuracy": 0.95, "batches": {"1": 0.1, "4": 0.2}},
    }
    site = Site(scaling=scaling(applications={"digits": {"slo_s": 1.0, "variants": batches}}))
    site.takes_s["large"] = 0.02
    site.run(40, 20)
    assert site.board.said is not None
    assert "large" not in site.board.said.pace


def test_a_new_autoscaler_begins_with_the_demand_that_the_last_one_knew() -> None:
    site = Site()
    site.run(15, 60)
    again = Site(site.board, running=dict(site.running), now=site.now)
    again.begun = site.begun  # the chooser lives on
    again.chooser = site.chooser
    again.turn(0)
    assert site.board.said is not None
    assert site.board.said.demand_rps["digits"] > 40


def test_a_chooser_that_is_gone_is_forgotten() -> None:
    site = Site()
    site.board.tell("gone", Tally("digits", 5, 0, 1.0))
    site.run(FORGET_S + 5, 4)
    assert site.board.told.keys() == {"me"}


def test_with_several_choosers_their_requests_add_up() -> None:
    site = Site()
    others = [Chooser("digits", "large", site.board) for _ in range(2)]
    for _ in range(60):
        for i, chooser in enumerate(others):
            for _ in range(5):
                with chooser.choose():
                    pass
            chooser.exchange(str(i), site.now + LOOK_S - site.begun)
        site.turn(20)
    assert site.board.said is not None
    assert site.board.said.demand_rps["digits"] == pytest.approx(60, rel=0.15)
    assert site.board.said.guides["digits"].choosers == 3


def test_while_nothing_is_planned_requests_go_to_the_default() -> None:
    chooser = Chooser("digits", "large", Memory())
    chooser.exchange("me", 0.5)
    with chooser.choose() as variant:
        assert variant == "large"
    assert chooser.notice is None


def test_an_answer_that_fails_counts_as_arrived_and_not_as_late() -> None:
    board = Memory()
    chooser = Chooser("digits", "large", board)
    with pytest.raises(RuntimeError), chooser.choose(within_s=-1.0):
        raise RuntimeError
    chooser.exchange("me", 0.5)
    assert board.told["me"] == Tally("digits", 1, 0, 0.5)


BAD: list[tuple[Mapping[str, Seen], str]] = [
    (
        {"small": SEEN, "lage": SEEN},
        "deployment 'large' is not in this Serve application, or has no autoscaling_config",
    ),
    ({"small": replace(SEEN, least=1), "large": SEEN}, "min_replicas is 1, which keeps a device from the others"),
    ({"small": replace(SEEN, most=1), "large": SEEN}, "max_replicas is 1, but plans may want all 2 devices"),
    ({"small": replace(SEEN, delay_s=600.0), "large": SEEN}, "delay is 600 s"),
]


@pytest.mark.parametrize(("seen", "says"), BAD, ids=[says for _, says in BAD])
def test_deployments_that_cannot_follow_are_named_and_left_as_they_are(seen: Mapping[str, Seen], says: str) -> None:
    board = Memory()
    autoscaler = Autoscaler("site", scaling(), board, 0.0)
    autoscaler.see(seen)
    assert any(says in complaint for complaint in complaints(scaling(), seen))
    autoscaler.turn(6.0, devices_of(scaling(), None))
    assert board.said is not None
    assert says in board.said.complaint
    assert autoscaler.wanted == {}


def test_deployments_that_are_mended_are_planned_for() -> None:
    site = Site()
    site.autoscaler.see({"small": replace(SEEN, least=1), "large": SEEN})
    site.autoscaler.turn(site.now, devices_of(site.scaling, None))
    assert site.autoscaler.complaint
    site.run(3, 4)
    assert not site.autoscaler.complaint
    assert site.autoscaler.wanted["large"] >= 1


def test_devices_are_those_that_the_nodes_alive_make() -> None:
    pools = {"gpu": {"devices": 3, "of": {"GPU": 1, "CPU": 2}}}
    told = scaling(pools=pools)
    node = {"Alive": True, "Resources": {"GPU": 2.0, "CPU": 8.0}}
    assert len(devices_of(told, [node])) == 2
    assert len(devices_of(told, [node, node])) == 3
    assert len(devices_of(told, [node, {**node, "Alive": False}, {"Alive": True, "Resources": {"CPU": 8.0}}])) == 2
    assert len(devices_of(told, None)) == 3
