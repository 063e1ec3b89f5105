"""What a fault came to: requests lost, refused or late, and how long until as many were in time as before.

A request is *lost* that somebody took, and neither answered nor refused; one that nobody took, because nobody was
there to connect to, was *kept out*.
"""

from dataclasses import dataclass
from math import inf, nan

import numpy as np

from cluster.outcomes import Outcomes

WINDOW_S = 1.0
BACK = 0.99  # of the attainment before
NOBODY = "cannot connect"  # how the load generator's errors of such requests begin


@dataclass(frozen=True, slots=True)
class Cost:
    """What a fault came to."""

    asked: int
    lost: int  # taken, and neither answered nor refused
    kept_out: int  # not taken: nobody was there to connect to
    refused: int  # with an explicit error
    late: int
    before: float  # attainment
    worst: float  # of a window since
    back_s: float  # since the fault, until attainment was back; infinite if not by the end
    rate_rps: float = nan  # of the load
    whole_s: float = nan  # since the fault's end, until every device answered again; NaN where it had none


def cost(outcomes: Outcomes, at: float, since: float = 0.0) -> Cost:
    """What the fault at `at` cost; attainment before it is taken from `since` on."""
    good, after = outcomes.status == "ok", outcomes.intended >= at
    unanswered = outcomes.http_status == 0
    kept_out = unanswered & np.array([str(error).startswith(NOBODY) for error in outcomes.error], bool)
    before = float(good[~after & (outcomes.intended >= since)].mean())
    edges = np.arange(at, float(outcomes.intended.max()), WINDOW_S)
    windows = [(outcomes.intended >= edge) & (outcomes.intended < edge + WINDOW_S) for edge in edges]
    attained = np.array([float(good[window].mean()) if window.any() else 1.0 for window in windows])
    bad = np.flatnonzero(attained < BACK * before)
    back_s = 0.0 if not len(bad) else (inf if bad[-1] == len(attained) - 1 else WINDOW_S * float(bad[-1] + 1))
    return Cost(
        len(outcomes),
        int((unanswered & ~kept_out & after).sum()),
        int((kept_out & after).sum()),
        int((~unanswered & after & (outcomes.http_status != 200)).sum()),
        int(((outcomes.status == "late") & after).sum()),
        before,
        float(attained.min(initial=1.0)),
        back_s,
    )
