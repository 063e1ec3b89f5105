"""Reads public traces of requests as rates over time; they are read where they lie and never copied."""

import csv
import gzip
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STEP_S = 0.5  # of a rate over time: the router reports this often
BIN_S = 5.0  # a bin of a coarse trace is played in this time


def instants(path: Path) -> Floats:
    """Seconds of each request of a trace of arrivals, from the first."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = csv.DictReader(file)
        key = (rows.fieldnames or [""])[0]
        if key == "timestamp_ms":
            found = [float(row[key]) / 1e3 for row in rows]
        else:
            found = [datetime.fromisoformat(row[key][:26]).timestamp() for row in rows]
    return np.array(found) - found[0]


def values(path: Path) -> Floats:
    """The counts of a trace of bins [bin]; those of single seconds are added up to minutes."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as file:
            seconds = np.array([int(line) for line in file], np.float64)
        minutes: Floats = seconds[: len(seconds) // 60 * 60].reshape(-1, 60).sum(axis=1)
        return minutes
    with path.open(encoding="utf-8") as file:
        return np.array([float(row["value"]) for row in csv.DictReader(file)])


def binned(width_s: float) -> Callable[[Path], Floats]:
    """Arrivals as counts of bins of `width_s`, one bin played in that time."""

    def read(path: Path) -> Floats:
        at = instants(path)
        counts: Floats = np.bincount((at / width_s).astype(int)).astype(np.float64)
        return counts.repeat(round(width_s / STEP_S))

    return read


def smooth(path: Path) -> Floats:
    """A coarse trace, each bin played in BIN_S, linear between their middles."""
    counts = values(path)
    steps = round(BIN_S / STEP_S)
    found: Floats = np.interp(np.arange(len(counts) * steps) / steps - 0.5, np.arange(len(counts)), counts)
    return found


TRACES: Mapping[str, Callable[[Path], Floats]] = {
    "azure_llm_2023_code.csv": binned(2.0),
    "azure_llm_2023_conv.csv": binned(5.0),
    "mooncake_conversation_arrivals.csv.gz": binned(5.0),
    "nasa_http_1995_rps.txt.gz": smooth,
    "nab_Twitter_volume_AAPL.csv": smooth,
    "nab_Twitter_volume_GOOG.csv": smooth,
    "nab_elb_request_count_8c0756.csv": smooth,
    "nab_nyc_taxi.csv": smooth,
}
