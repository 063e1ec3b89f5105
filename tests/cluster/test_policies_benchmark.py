"""The policies' benchmark: its plane, its windows, its memory, and the large cluster, on made-up numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks import timm_cluster
from benchmarks.plane import Point, front, paired
from benchmarks.policies import HEADING, with_section
from benchmarks.runs import Book, Job, Row, digest
from benchmarks.stages import busiest, parts, policy, redrawn
from cluster.workload import Workload
from planner.baselines import RIVALS

COLUMNS = "model,img_size,top1,param_count,base," + ",".join(f"{pool}_ips" for pool in timm_cluster.POOLS)
TABLE = f"""{COLUMNS}
resnet10.a,224,66.0,5.4,resnet10,50,100,10000,12000,20000
resnet50.a,224,80.0,"1,025.5",resnet50,20,40,3000,4000,6000
resnet50.worse,224,79.0,25.5,resnet50,10,30,2000,3000,4000
vit_tiny.a,224,75.0,5.7,vit_tiny_patch16,60,120,9000,12000,20000
unknown.a,224,75.0,5.7,unknown,60,120,9000,12000,20000
vit_no_gpu.a,224,85.0,5.7,vit_no_gpu,60,120,,12000,20000
"""


@dataclass(frozen=True)
class Made:
    """A stage that costs nothing."""

    data: str
    name: str = "made"

    def play(self, policy: str, seed: int) -> Row:
        """Numbers."""
        assert policy
        return Row(seed, 0.1, 0.9, 0.9, 0.81)

    def weight(self, policy: str) -> float:
        """None."""
        assert policy
        return 1.0


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    path = tmp_path / "timm.csv"
    path.write_text(TABLE)
    return path


def test_a_family_keeps_only_what_no_cheaper_weight_equals(tables: Path) -> None:
    found = timm_cluster.catalogue(tables)
    assert {name: [o.name for o in options] for name, options in found.options.items()} == {
        "resnet": ["resnet/resnet10.a-224", "resnet/resnet50.a-224"],
        "vit": ["vit/vit_tiny.a-224"],
    }
    assert found.accuracy["resnet/resnet50.a-224"] == pytest.approx(0.8)
    assert sum(pool.devices for pool in found.pools.values()) == 1000
    assert found.latency["vit/vit_tiny.a-224", "rtx3090"].at(8) == pytest.approx(0.004 + 8 / 9000)


def test_memory_binds_only_where_it_is_asked_to(tables: Path) -> None:
    ample, short = timm_cluster.catalogue(tables), timm_cluster.catalogue(tables, binds=True)
    needed = sum(unit.memory_bytes for unit in ample.units.values())
    assert all(pool.memory_bytes == needed for pool in ample.pools.values())
    assert short.pools["i7_12700h"].memory_bytes == 2 * timm_cluster.GIGABYTE


def test_the_busiest_window_is_found_and_drawn_anew() -> None:
    instant = np.sort(np.concatenate([np.linspace(0, 9.99, 100), np.linspace(4, 5.99, 400)]))
    whole = Workload(("a", "b"), instant, np.arange(500) % 2, np.zeros(500, np.int64))
    part = busiest(whole, 2.0)
    assert 410 < len(part) < 430
    assert part.instant[0] >= 0
    assert part.instant[-1] < 2.0
    one, again, other = redrawn(part, 1), redrawn(part, 1), redrawn(part, 2)
    assert np.array_equal(one.instant, again.instant)
    assert not np.array_equal(one.instant, other.instant)
    assert abs(len(one) - len(part)) < 5 * len(part) ** 0.5


def test_the_front_holds_those_that_no_other_beats() -> None:
    points = [Point("a", 0.0, 0.9), Point("b", 0.1, 0.95), Point("c", 0.1, 0.94), Point("d", 0.2, 0.95)]
    assert [point.name for point in front(points)] == ["a", "b"]
    assert not points[0].beats(points[0])


def test_a_difference_is_paired_by_seed() -> None:
    found = paired([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-9)


def test_rows_are_remembered_but_for_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    job, other = Job(Made("here"), "slackfit", 7), Job(Made("here"), "slackfit", 8)
    Book(path).add(job, job.stage.play(job.policy, job.seed))
    with path.open("a") as file:
        file.write('{"key": "half')
    again = Book(path)
    assert again[job].asked == 7
    assert other not in again
    assert Job(Made("moved"), "slackfit", 7) in again  # wherever the data lies


def test_our_code_and_the_rivals_are_told_apart() -> None:
    assert digest(True) != digest(False)


def test_every_policy_has_a_name() -> None:
    names = ["pliant", "placed sneakpeek", *RIVALS, *(f"pliant without {part}" for part in parts())]
    assert len(parts()) >= 1
    assert all(callable(policy(name)) for name in names)


def test_a_section_is_replaced_or_appended() -> None:
    section = f"{HEADING}\n\nnew\n"
    assert with_section("# Page\n\n## A\n\na\n", section) == f"# Page\n\n## A\n\na\n\n{section}"
    page = f"# Page\n\n{HEADING}\n\nold\n\n### sub\n\n## B\n\nb\n"
    assert with_section(page, section) == f"# Page\n\n{section}\n## B\n\nb\n"
