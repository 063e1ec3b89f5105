"""What others plan and serve, on the same problem and judged alike: docs/rivals.md."""

from collections.abc import Callable, Mapping

from planner.baselines import infaas, model_switching, proteus_serving
from planner.baselines.batching import RULES
from planner.baselines.clipper import StaticAllocator
from planner.baselines.early import EarlyRouter, Serving
from planner.baselines.edf import EdfRouter, Rule
from planner.baselines.infaas import InfaasAllocator
from planner.baselines.model_switching import SwitchingAllocator
from planner.baselines.planning import Allocator, Pace, RivalController
from planner.baselines.proteus_serving import ProteusAllocator
from planner.baselines.residency import ResidentController
from planner.baselines.slackfit import MaxAccurate, MaxBatch, SlackFit
from planner.baselines.sneakpeek import Peeking, SneakPeekRouter
from planner.baselines.sommelier import SommelierAllocator
from planner.catalogue import Catalogue
from planner.controller import Settings
from planner.machines import ControllerMachine, Policy, RouterMachine
from planner.router import Limits

STATIC = Pace(period_s=10.0)


def early(
    allocator: Callable[[], Allocator],
    pace: Pace,
    serving: Serving,
    resident: bool = False,
    expected_rps: Mapping[str, float] | None = None,
) -> Policy:
    """A rival that plans one unit per device and binds requests on arrival.

    `resident` keeps every unit loaded where memory holds them all; `expected_rps` is what it knows of the demand
    before the first report.
    """

    def made(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
        controller = RivalController(catalogue, settings, allocator(), pace, resident, expected_rps)
        return controller, EarlyRouter(catalogue, limits, serving)

    return made


def late(rule: Callable[[], Rule]) -> Policy:
    """A rival for which all variants are resident and a rule picks one when a device is free."""

    def made(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
        del settings
        return ResidentController(catalogue), EdfRouter(catalogue, limits, rule())

    return made


def sneakpeek(peeking: Peeking) -> Policy:
    """SneakPeek with these settings, on devices that hold all that fits them."""

    def made(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
        del settings
        return ResidentController(catalogue), SneakPeekRouter(catalogue, limits, peeking)

    return made


ADAPTIVE, AIMD, NEXUS = Serving(RULES["adaptive"]), Serving(RULES["aimd"]), Serving(RULES["nexus"])
CLIPPER = Serving(RULES["aimd"], weighing="capacity")
INFAAS = Serving(RULES["planned"], weighing="capacity", spreading="least")
SWITCHING = Serving(RULES["planned"], weighing="capacity", spreading="smooth")
UNIFORM = Serving(RULES["adaptive"], weighing="uniform")
KIND = Serving(RULES["adaptive"], spreading="smooth")
RELEASED = Serving(RULES["released"], weighing="uniform", grace=1.0)
RELEASED_PLAN = Serving(RULES["released"], grace=1.0)
PROTEUS = proteus_serving.PACE


RIVALS: Mapping[str, Policy] = {
    "clipper-ha": early(lambda: StaticAllocator("best"), STATIC, CLIPPER),
    "clipper-ht": early(lambda: StaticAllocator("cheapest"), STATIC, CLIPPER),
    "model-switching": early(SwitchingAllocator, model_switching.PACE, SWITCHING, resident=True),
    "sommelier": early(SommelierAllocator, PROTEUS, ADAPTIVE),
    "sommelier-resident": early(SommelierAllocator, PROTEUS, ADAPTIVE, resident=True),
    "infaas": early(InfaasAllocator, infaas.PACE, INFAAS),
    "infaas-resident": early(InfaasAllocator, infaas.PACE, INFAAS, resident=True),
    "proteus": early(ProteusAllocator, PROTEUS, ADAPTIVE),
    "proteus-resident": early(ProteusAllocator, PROTEUS, ADAPTIVE, resident=True),
    "proteus-uniform": early(lambda: ProteusAllocator(spread=True), PROTEUS, UNIFORM, resident=True),
    "proteus-kind": early(lambda: ProteusAllocator(spread=True), PROTEUS, KIND, resident=True),
    "proteus-1.3": early(lambda: ProteusAllocator(1.3, spread=True), PROTEUS, ADAPTIVE, resident=True),
    "proteus-1.6": early(lambda: ProteusAllocator(1.6, spread=True), PROTEUS, ADAPTIVE, resident=True),
    "proteus-released": early(lambda: ProteusAllocator(spread=True), PROTEUS, RELEASED, resident=True),
    "proteus-released-plan": early(ProteusAllocator, PROTEUS, RELEASED_PLAN, resident=True),
    "proteus-aimd": early(ProteusAllocator, PROTEUS, AIMD, resident=True),
    "nexus": early(ProteusAllocator, PROTEUS, NEXUS, resident=True),
    "slackfit": late(SlackFit),
    "slackfit-accuracy": late(lambda: SlackFit(prefer="accuracy")),
    "maxacc-edf": late(MaxAccurate),
    "maxacc-edf-blind": late(lambda: MaxAccurate(in_time=False)),
    "maxbatch": late(MaxBatch),
    "sneakpeek": sneakpeek(Peeking()),
    "sneakpeek-step": sneakpeek(Peeking(penalty="step")),
    "sneakpeek-variance": sneakpeek(Peeking(order="variance")),
    "sneakpeek-profiled": sneakpeek(Peeking(data_aware=False)),
    "sneakpeek-swaps": sneakpeek(Peeking(swaps=True)),
    "sneakpeek-no-short-circuit": sneakpeek(Peeking(short_circuit=False)),
    "sneakpeek-edf": sneakpeek(Peeking(scheduler="edf")),
    "sneakpeek-edf-step": sneakpeek(Peeking(scheduler="edf", penalty="step")),
}
