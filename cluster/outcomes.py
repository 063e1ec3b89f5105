"""What became of each request, as one value and as columns."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Status = Literal["ok", "late", "rejected", "error"]
FORMAT = "outcomes 1"


class OutcomesError(ValueError):
    """A file that holds no outcomes; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; instants are seconds from the start of the run."""

    application: str
    sample: int  # index into the heldout set
    label: int  # true class
    intended: float  # when it should have been sent; latency counts from here
    sent: float  # NaN where it never was
    finished: float
    status: Status  # ok: answered in time
    http_status: int  # 0 without a response
    error: str  # "" where answered
    answered: int  # class, -1 without an answer
    variant: str
    pool: str
    expected_accuracy: float  # NaN without an answer
    deadline_s: float  # from `intended`
    emulated: bool  # the pool imitates a slower device
    router_s: float = math.nan  # of the latency, what the router says it spent; NaN without an answer
    simulated: bool = False  # no device ran anything: `cluster.simulator`

    @property
    def correct(self) -> bool:
        """The answered class is the true one."""
        return self.answered == self.label

    @property
    def latency_s(self) -> float:
        """From the intended instant, so that a stalled sender hides nothing (no coordinated omission)."""
        return self.finished - self.intended


FIELDS = tuple(f.name for f in dataclasses.fields(Outcome))
DTYPES: dict[Any, str] = {int: "i8", float: "f8", bool: "?"}
KINDS = {name: DTYPES.get(hint, "O") for name, hint in get_type_hints(Outcome).items()}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes as columns, [request] in the order of the workload; `Outcome` says what each is."""

    application: NDArray[Any]
    sample: NDArray[np.int64]
    label: NDArray[np.int64]
    intended: NDArray[np.float64]
    sent: NDArray[np.float64]
    finished: NDArray[np.float64]
    status: NDArray[Any]
    http_status: NDArray[np.int64]
    error: NDArray[Any]
    answered: NDArray[np.int64]
    variant: NDArray[Any]
    pool: NDArray[Any]
    expected_accuracy: NDArray[np.float64]
    deadline_s: NDArray[np.float64]
    emulated: NDArray[np.bool_]
    router_s: NDArray[np.float64]
    simulated: NDArray[np.bool_]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Outcomes":
        """The columns of `outcomes`, in their order."""
        rows = list(outcomes)
        return cls(**{name: np.array([getattr(o, name) for o in rows], KINDS[name]) for name in FIELDS})

    def __len__(self) -> int:
        return len(self.intended)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the answered class is the true one; False without an answer."""
        return np.asarray(self.answered == self.label, np.bool_)

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """Seconds from the intended instant to the end."""
        return self.finished - self.intended

    @property
    def in_time(self) -> NDArray[np.bool_]:
        """Whether the request was answered within its deadline."""
        return np.asarray(self.status == "ok", np.bool_)

    @property
    def was_answered(self) -> NDArray[np.bool_]:
        """Whether an answer came at all, in time or late."""
        return self.in_time | np.asarray(self.status == "late", np.bool_)

    def applications(self) -> list[str]:
        """The applications asked, by name."""
        return sorted(set(self.application))

    def where(self, mask: NDArray[np.bool_]) -> "Outcomes":
        """The outcomes at which `mask` [request] is true."""
        return Outcomes(**{name: getattr(self, name)[mask] for name in FIELDS})

    def variants(self) -> list[str]:
        """The variants that answered, from the least to the most accurate expected on average."""
        names, index = np.unique(self.variant[self.was_answered].astype(str), return_inverse=True)
        expected = np.nan_to_num(self.expected_accuracy[self.was_answered])
        mean = np.bincount(index, expected, len(names)) / np.maximum(np.bincount(index, minlength=len(names)), 1)
        return [str(names[i]) for i in np.lexsort((names, mean))]

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """One after the other."""
        if not parts:
            return cls.of([])
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS})

    def table(self) -> pa.Table:
        """The columns for Parquet, with `correct` and `latency_s` for those who read it with other tools."""
        columns: dict[str, Any] = {}
        for name in (*FIELDS, "correct", "latency_s"):
            values = getattr(self, name)
            columns[name] = pa.array(values.tolist(), pa.string()) if values.dtype == object else values
        return pa.table(columns, metadata={"pliant": FORMAT})

    def save(self, path: str | Path) -> None:
        """Write Parquet."""
        pq.write_table(self.table(), path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "Outcomes":
        """Read what `save` wrote; OutcomesError where the file is missing or is none of these."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise OutcomesError(f"{path}: no such file") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise OutcomesError(f"{path}: not Parquet: {error}") from error
        found = (table.schema.metadata or {}).get(b"pliant", b"nothing of Pliant's").decode()
        if found != FORMAT:
            raise OutcomesError(f"{path} holds {found}, not {FORMAT}; give a file that `pliant load` wrote")
        if "simulated" not in table.column_names:  # written before there was a simulator
            table = table.append_column("simulated", pa.array([False] * len(table), pa.bool_()))
        return cls(**{name: _column(table[name], KINDS[name]) for name in FIELDS})


class Writer:
    """Writes outcomes to a file part by part, a row group each: `with Writer(path) as write: write(outcomes)`."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._file: Any = None

    def __enter__(self) -> "Writer":
        self(Outcomes.of([]))  # so that a run without requests has a file too
        return self

    def __call__(self, outcomes: Outcomes) -> None:
        """Append the outcomes."""
        table = outcomes.table()
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        if len(outcomes):
            self._file.write_table(table)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def _column(values: Any, kind: str) -> NDArray[Any]:
    return np.array(values.to_pylist(), kind) if kind == "O" else values.to_numpy().astype(kind)
