"""Devices that hold one copy each: a new version starts instead of an old copy, while the other one answers."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.cluster.served import wait_until
from tests.cluster.test_apply import POOL, VARIANTS, applied, cluster, deployments, digests, load, updated

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with cluster(tmp_path_factory.mktemp("tight"), replace(POOL, memory_mb=300), VARIANTS[:1]) as found:
        yield found


def test_a_model_is_replaced_where_no_device_could_hold_both(live: SimpleNamespace) -> None:
    before = digests(live)
    with load(live):
        config = replace(updated(live, "same"), applications=live.config.applications)
        assert applied(live, config, share=0.3, watch_s=3.0) == "done"
    assert digests(live) != before
    assert applied(live, live.config, watch_s=0.0) == "done"
    assert digests(live) == before
    wait_until(lambda: not deployments())
