"""What autoscaler and choosers write is what they read, and what another version wrote is passed over."""

from dataclasses import asdict

import orjson
import pytest

from deployments.board import Guide, Notice, Tally, _notice, _tally
from planner.splitting import Arm

NOTICE = Notice(
    guides={
        "digits": Guide(0.5, 0.03, (Arm("small", 0.75, 0.8, 2, 0.01, 0.005), Arm("large", 0.25, 0.9, 1, 0.1, 0.1)), 2)
    },
    demand_rps={"digits": 12.5},
    replicas={"small": 2, "large": 1},
    complaint="none",
)


def test_notices_and_tallies_come_back_as_they_were() -> None:
    assert _notice(orjson.dumps(asdict(NOTICE))) == NOTICE
    tally = Tally("digits", 5, 1, 2.5)
    assert _tally(orjson.dumps(asdict(tally))) == tally


@pytest.mark.parametrize(
    "found", [b"", b"{}", b"[]", b'{"guides": {"digits": {}}}', b'{"guides": {}, "colour": "red"}']
)
def test_what_another_version_wrote_is_passed_over(found: bytes) -> None:
    assert _notice(found) is None
    assert _tally(found) is None
