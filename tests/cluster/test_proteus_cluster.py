"""Proteus' tables as a catalogue and workloads, read from a folder like the published one but of made-up numbers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.proteus_cluster import Assumptions, catalogue, scene, workload
from cluster.simulating import pliant
from cluster.simulator import simulate
from cluster.workload import WorkloadError

TABLES = {
    "slo.csv": "trace,slo_set,family,slo_ms,n_requests,last_arrival_ms,sorted\nt,300,m,300.0,200,20000,True\n",
    "variants.csv": "family,variant,accuracy_norm\nm,small,80\nm,big,100\nother,x,100\n",
    "cluster.csv": "device,count,repo_labels,paper\ncpu,2,,\nv100,1,,\n",
    "profiles.csv": "family,variant,device,batch,p50_ms,used_by_simulator\n"
    "m,small,cpu,1,10,True\nm,small,cpu,8,50,True\nm,small,cpu,16,90,False\nm,small,cpu,8,55,False\n"
    "m,big,v100,1,20,True\nm,big,v100,2,30,True\nother,x,cpu,1,5,True\n",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "traces").mkdir()
    arrivals = pa.table({"family": ["m"] * 200, "t_ms": pa.array(range(0, 20_000, 100), pa.int32())})
    pq.write_table(arrivals, tmp_path / "traces" / "t.parquet")
    return tmp_path


def test_the_catalogue_is_the_published_set_up(data: Path) -> None:
    found = catalogue(data, "t", "300")
    assert found.applications["m"].slo_s == pytest.approx(0.3)
    assert found.accuracy == {"m/small": 0.8, "m/big": 1.0}
    assert {name: (pool.devices, pool.memory_bytes) for name, pool in found.pools.items()} == {
        "cpu": (2, 1),
        "v100": (1, 1),
    }
    assert found.latency["m/small", "cpu"].latency_s == pytest.approx((0.010, 0.050))
    assert set(found.latency) == {("m/small", "cpu"), ("m/big", "v100")}


def test_assumptions_can_be_changed(data: Path) -> None:
    found = catalogue(data, "t", "300", Assumptions(resident=3, load_s=2.0, max_batch=16, slo_factor=0.5, devices=2.0))
    assert found.pools["cpu"].memory_bytes == 3
    assert found.pools["v100"].devices == 2
    assert found.units["m/big"].load_s == 2.0
    assert found.latency["m/small", "cpu"].max_batch == 16
    assert found.applications["m"].slo_s == pytest.approx(0.15)


def test_a_trace_is_played_as_it_is_or_scaled(data: Path) -> None:
    assert workload(data, "t").instant.tolist() == pytest.approx([0.1 * i for i in range(200)])
    assert len(workload(data, "t", rate=2.0)) == 400
    with pytest.raises(WorkloadError, match="there are t"):
        workload(data, "u")


def test_it_is_simulated(data: Path) -> None:
    run = simulate(scene(data, "t"), workload(data, "t"), pliant, 1)
    assert run.summary.asked == 200
    assert run.summary.attainment.value == 1.0
    assert run.summary.expected_accuracy > 0.95
