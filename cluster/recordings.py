"""Recorded predictions: what every variant answered on every sample, so that correctness is joint between variants.

A request is a sample of a recording. Where only mean accuracies are published, `comonotone` makes a recording of which
each option is right on its share of the samples and the better option wherever a worse one is: the shared draw per
request that assumes most agreement between variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from planner.accuracy import Estimator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = tuple[float, ...]
FORMAT = "recording 1"
PER_SAMPLE = ("cell", "peeked", "sure")  # columns that a recording may have
SAMPLES = 10_000  # of a made recording: accuracies are exact to 0.01 points


class RecordingError(ValueError):
    """A recording that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One application's samples: their true classes, and what each option (in the catalogue's order) answered."""

    labels: Ints  # [sample]
    answered: Ints  # [option, sample]
    estimates: Floats | None = None  # [sample, option], expected accuracy as a SneakPeek model saw it beforehand
    cell: Ints | None = None  # [sample]
    peeked: Ints | None = None  # [sample], the class that the SneakPeek model itself answers
    sure: Floats | None = None  # [sample], how likely it is right, as it says

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.answered.ndim != 2 or self.answered.shape[1] != n or not n:
            raise RecordingError(f"{n} labels, but answers of shape {self.answered.shape}; they are [option, sample]")
        if self.estimates is not None and self.estimates.shape != (n, len(self.answered)):
            raise RecordingError(f"estimates of shape {self.estimates.shape}; they are [{n}, {len(self.answered)}]")
        for what, values in (("cells", self.cell), ("peeked", self.peeked), ("sure", self.sure)):
            if values is not None and values.shape != (n,):
                raise RecordingError(f"{what} of shape {values.shape}; they are [{n}]")
        if (self.peeked is None) != (self.sure is None):
            raise RecordingError("what a SneakPeek model answers and how sure it is go together")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each option was right on each sample [option, sample]."""
        return np.asarray(self.answered == self.labels, np.bool_)


def comonotone(accuracy: Sequence[float], seed: int, samples: int = SAMPLES) -> Recording:
    """A recording of options with these mean accuracies, right wherever a less accurate one is.

    One uniform number a sample, drawn once for all options (stratified, in an order by `seed`): an option is right
    where it is below the option's accuracy. Right answers are class 0, wrong ones class 1.
    """
    uniform = (np.random.default_rng([seed, samples]).permutation(samples) + 0.5) / samples
    wrong = uniform[None, :] >= np.asarray(accuracy, np.float64)[:, None]
    return Recording(np.zeros(samples, np.int64), wrong.astype(np.int64))


def save_recording(path: str | Path, recording: Recording, options: Sequence[str], **marks: str) -> None:
    """Write Parquet, one row a sample: label, cell, each option's answer and estimate; `marks` as metadata."""
    columns: dict[str, Any] = {"label": recording.labels}
    columns |= {name: getattr(recording, name) for name in PER_SAMPLE if getattr(recording, name) is not None}
    for i, option in enumerate(options):
        columns[f"answered {option}"] = recording.answered[i]
        if recording.estimates is not None:
            columns[f"estimate {option}"] = recording.estimates[:, i]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, metadata={"pliant": FORMAT, **marks}), path, compression="zstd")


def load_recording(path: str | Path, options: Sequence[str], **marks: str) -> Recording:
    """Read what `save_recording` wrote; RecordingError where it is missing, lacks an option or bears other marks."""
    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise RecordingError(f"{path}: no recording: {error}") from error
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if found.get("pliant") != FORMAT or any(found.get(key) != value for key, value in marks.items()):
        raise RecordingError(f"{path}: not a recording of these models and samples")
    missing = [name for name in options if f"answered {name}" not in table.column_names]
    if missing:
        raise RecordingError(f"{path}: no answers of '{missing[0]}'")
    seen = all(f"estimate {name}" in table.column_names for name in options)
    return Recording(
        labels=table["label"].to_numpy().astype(np.int64),
        answered=np.stack([table[f"answered {name}"].to_numpy() for name in options]).astype(np.int64),
        estimates=np.stack([table[f"estimate {name}"].to_numpy() for name in options], axis=1) if seen else None,
        **{name: table[name].to_numpy() for name in PER_SAMPLE if name in table.column_names},
    )


class Perception(Protocol):
    """What the router believes of requests before they are run, and learns from their answers."""

    learns: bool

    def estimate(self, samples: Sequence[int]) -> list[Row]:
        """Expected accuracy of each option, for each of the samples."""

    def answered(self, samples: Sequence[int], options: Sequence[int], classes: Sequence[int]) -> None:
        """These options answered these samples with these classes."""

    def sure(self, samples: Sequence[int]) -> list[float | None]:
        """How likely the SneakPeek model is right itself, after `estimate`; None where its answer may not be given."""

    def peeked(self, sample: int) -> int:
        """The SneakPeek model's own answer to a sample whose accuracy was estimated."""

    def cell(self, sample: int) -> int:
        """The cell of a sample whose accuracy was estimated."""

    def current(self) -> Row:
        """Each option's accuracy over what arrives now; empty where that is not followed."""

    def in_cells(self) -> Sequence[Row]:
        """The same in each cell, [option][cell]; empty where that is not followed."""


class Recorded:
    """Believes what was recorded, or where nothing was, the profiled accuracy of every option; learns nothing."""

    learns = False

    def __init__(self, recording: Recording, accuracy: Row) -> None:
        table = recording.estimates
        self._rows = None if table is None else [tuple(row) for row in table.tolist()]
        self._row = accuracy
        self._cell = None if recording.cell is None else recording.cell.tolist()
        self._sure = None if recording.sure is None else recording.sure.tolist()
        self._peeked: list[int] = [] if recording.peeked is None else recording.peeked.tolist()

    def estimate(self, samples: Sequence[int]) -> list[Row]:
        """The recorded rows."""
        if self._rows is None:
            return [self._row] * len(samples)
        rows = self._rows
        return [rows[sample] for sample in samples]

    def answered(self, samples: Sequence[int], options: Sequence[int], classes: Sequence[int]) -> None:
        """Nothing is learnt."""

    def sure(self, samples: Sequence[int]) -> list[float | None]:
        """As recorded."""
        if self._sure is None:
            return [None] * len(samples)
        return [self._sure[sample] for sample in samples]

    def peeked(self, sample: int) -> int:
        """As recorded."""
        return self._peeked[sample]

    def cell(self, sample: int) -> int:
        """As recorded."""
        return 0 if self._cell is None else self._cell[sample]

    def current(self) -> Row:
        """Nothing is followed."""
        return ()

    def in_cells(self) -> Sequence[Row]:
        """Nothing is followed."""
        return ()


class Estimated:
    """Asks the live system's own estimator; what it believes of the label mix is as old as the last report."""

    learns = True

    def __init__(self, estimator: Estimator, inputs: NDArray[Any], short_circuit: bool = False) -> None:
        self._estimator, self._inputs, self._short_circuit = estimator, inputs, short_circuit
        self._own: dict[int, tuple[int, float]] = {}  # by sample: the SneakPeek model's own answer, and how sure it is
        self._likelihood: dict[int, Floats] = {}  # by sample: what its look saw does not change, nor
        self._cell: dict[int, int] = {}  # its cell

    def estimate(self, samples: Sequence[int]) -> list[Row]:
        """The estimator's rows for the samples' inputs."""
        if not len(samples):
            return []
        found = self._estimator.estimate(self._inputs[list(samples)])
        self._likelihood.update(zip(samples, found.likelihood, strict=True))
        self._cell.update(zip(samples, found.cell.tolist(), strict=True))
        if self._short_circuit and found.answer is not None and found.sure is not None:
            self._own.update(zip(samples, zip(found.answer.tolist(), found.sure.tolist(), strict=True), strict=True))
        return [tuple(row) for row in found.accuracy.tolist()]

    def answered(self, samples: Sequence[int], options: Sequence[int], classes: Sequence[int]) -> None:
        """The estimator's label mix follows."""
        if len(samples):
            self._estimator.answered(np.stack([self._likelihood[s] for s in samples]), options, classes)

    def sure(self, samples: Sequence[int]) -> list[float | None]:
        """As estimated, where short circuits are allowed."""
        return [self._own[sample][1] if sample in self._own else None for sample in samples]

    def peeked(self, sample: int) -> int:
        """As estimated."""
        return self._own[sample][0]

    def cell(self, sample: int) -> int:
        """As estimated."""
        return self._cell[sample]

    def current(self) -> Row:
        """The estimator's present accuracies."""
        return tuple(float(value) for value in self._estimator.current())

    def in_cells(self) -> Sequence[Row]:
        """The estimator's present accuracies in each cell."""
        return [tuple(row) for row in self._estimator.in_cells().tolist()]
