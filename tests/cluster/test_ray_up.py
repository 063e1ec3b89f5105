"""`ray up` from cluster/edge-cluster.yaml on hosts of their own: bare boxes, served requests, faults, and down."""

from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

from benchmarks.edge_cluster import FAULTS, UP_S, EdgeSite, suffer
from benchmarks.hosts import missing

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RATE_RPS = 10.0  # light: this is about what is answered, on a machine that others use too
RAY = "ps -eo args | grep -cE '[g]cs_server|[r]aylet/raylet|[r]ay::'"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeSite]:
    """A head and three devices in two pools that `ray up` has put together, with Pliant deployed, and a desk."""
    if trouble := missing():
        pytest.skip(f"hosts on one machine: {trouble}")
    directory = tmp_path_factory.mktemp("site")
    with EdgeSite(directory, Console(stderr=True)) as built:
        built.up()
        built.deploy()
        yield built


def test_every_box_is_a_device_of_its_pool_and_batches_reach_it_over_tcp(site: EdgeSite) -> None:
    seen = site.status()
    assert seen["devices"] == {"box-0": "box", "camera-0": "camera", "camera-1": "camera"}
    assert seen["ingress"] == "direct"
    assert seen["transport"]["channels"] == sum(len(units) for units in seen["loaded"].values()) > 0


def test_what_belongs_to_the_desk_stays_there(site: EdgeSite) -> None:
    for name in ("head", *site.devices):
        found = set(site.network.hosts[name].run("ls -A pliant-source").split())
        assert {"cluster.yaml", "planner", "pyproject.toml"} <= found
        assert not found & {".git", ".venv"}
        assert site.network.hosts[name].run("find pliant-source -name a.pyc") == ""


def test_a_request_from_another_host_is_answered(site: EdgeSite) -> None:
    answer = site.ask()
    assert answer["parameters"]["deadline_met"] is True
    assert answer["parameters"]["pool"] in ("camera", "box")


def test_no_token_no_ray(site: EdgeSite) -> None:
    said = site.ray("status", "--address", f"{site.file['provider']['head_ip']}:6379", mode="disabled", check=False)
    assert "InvalidAuthToken" in said


@pytest.mark.parametrize("name", ["short", "long"])
def test_a_host_cut_off_loses_no_request_and_serves_again(site: EdgeSite, name: str) -> None:
    found, outcomes = suffer(site, FAULTS[name], RATE_RPS)
    print(f"{FAULTS[name].title}: {found}")
    assert len(outcomes) == found.asked
    assert set(outcomes.http_status) <= {200, 503, 504}, sorted(set(outcomes.error))
    assert (outcomes.http_status == 200).mean() > 0.9
    late = outcomes.intended > FAULTS[name].seconds - 10.0
    assert (outcomes.http_status[late] == 200).mean() > 0.9, "it is as it was"
    assert site.whole(), "and every device answers"


def test_hosts_that_are_far_from_each_other_still_serve(site: EdgeSite) -> None:
    found, outcomes = suffer(site, FAULTS["delay"], RATE_RPS)
    print(f"{FAULTS['delay'].title}: {found}")
    assert set(outcomes.http_status) <= {200, 503, 504}, sorted(set(outcomes.error))
    assert (outcomes.http_status == 200).mean() > 0.9
    delayed = (outcomes.intended > 15.0) & (outcomes.http_status == 200)
    assert np.median((outcomes.finished - outcomes.sent)[delayed]) > 2 * FAULTS["delay"].delay_s


def test_ray_down_ends_it_on_every_box(site: EdgeSite) -> None:
    hosts = [site.network.hosts[name] for name in ("head", *site.devices)]
    assert all(int(host.run(RAY, check=False)) > 0 for host in hosts)
    site.down()
    site.wait("Ray still runs", lambda: not any(int(host.run(RAY, check=False)) for host in hosts), UP_S)
