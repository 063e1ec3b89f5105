"""A linear model with some integer columns, built a row at a time and solved with HiGHS; always maximised."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Solution:
    """One answer to the model; `bound` is at least the best objective that any answer can have."""

    values: NDArray[np.float64]  # [column]
    duals: NDArray[np.float64]  # [row], of the equivalent minimisation
    reduced: NDArray[np.float64]  # [column], what one unit more of a column that is 0 would lose
    objective: float
    bound: float

    def price(self, row: int) -> float:
        """What one more unit of an upper limit is worth, 0 or more."""
        return max(0.0, -float(self.duals[row]))


class Linear:
    """Columns and rows as they are added, handed to HiGHS at the first solve."""

    def __init__(self) -> None:
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._integer: list[bool] = []
        self._row_lower: list[float] = []
        self._row_upper: list[float] = []
        self._starts: list[int] = [0]
        self._index: list[int] = []
        self._value: list[float] = []
        self._loose: set[int] = set()
        self._highs: highspy.Highs | None = None

    @property
    def run_s(self) -> float:
        """Seconds that HiGHS has run on this model so far, by its own account."""
        return float(self._highs.getRunTime()) if self._highs else 0.0

    def column(self, gain: float, lower: float = 0.0, upper: float = INFINITY, integer: bool = False) -> int:
        """Adds a column that brings `gain` per unit; its index."""
        self._cost.append(-gain)
        self._lower.append(lower)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    def row(self, terms: Iterable[tuple[int, float]], lower: float = -INFINITY, upper: float = INFINITY) -> int:
        """Adds lower ≤ Σ value·column ≤ upper, each column at most once; its index."""
        for index, value in terms:
            self._index.append(index)
            self._value.append(value)
        self._starts.append(len(self._index))
        self._row_lower.append(lower)
        self._row_upper.append(upper)
        return len(self._row_lower) - 1

    def grow(self, gain: float, terms: Sequence[tuple[int, float]], upper: float, integer: bool = False) -> int:
        """Adds a column from 0 to `upper` with its (row, value)s to a model that is in use; its index."""
        rows = np.array([row for row, _ in terms], dtype=np.int32)
        values = np.array([value for _, value in terms], dtype=np.float64)
        self._model().addCol(-gain, 0.0, upper, len(terms), rows, values)
        self._lower.append(0.0)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._integer) - 1

    def grow_row(self, upper: float) -> int:
        """Adds an empty row, for columns to come, to a model that is in use; its index."""
        none = np.array([], dtype=np.int32)
        self._model().addRow(-INFINITY, upper, 0, none, none.astype(np.float64))
        self._row_lower.append(-INFINITY)
        self._row_upper.append(upper)
        return len(self._row_lower) - 1

    def solve(
        self,
        fixed: Mapping[int, float] | None = None,
        loose: Collection[int] = (),
        integer: bool = False,
        start: NDArray[np.float64] | None = None,
        time_limit_s: float = INFINITY,
        gap: float = 0.0,
    ) -> Solution:
        """The maximum; whole numbers are asked for with `integer`, else relaxed, with `fixed`
        columns held and `loose` rows left out.

        `time_limit_s` is for this run alone, as HiGHS 1.15 counts it; `gap` is absolute. Without any answer in time the
        objective is −∞. RuntimeError where an LP has no optimum, which none of the program's own lacks.
        """
        highs = self._model()
        self._loosen(highs, loose)
        columns = np.flatnonzero(self._integer).astype(np.int32)
        lower, upper = np.array(self._lower)[columns], np.array(self._upper)[columns]
        if fixed is not None:
            held = np.array([fixed.get(int(c), np.nan) for c in columns])
            lower, upper = np.where(np.isnan(held), lower, held), np.where(np.isnan(held), upper, held)
        highs.changeColsBounds(len(columns), columns, lower, upper)
        kind = highspy.HighsVarType.kInteger if integer else highspy.HighsVarType.kContinuous
        highs.changeColsIntegrality(len(columns), columns, np.full(len(columns), int(kind), dtype=np.uint8))
        highs.setOptionValue("time_limit", time_limit_s)
        highs.setOptionValue("mip_abs_gap", gap)
        if start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = list(start)
            highs.setSolution(solution)
        highs.run()
        if not integer and highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            # HiGHS 1.15 ends about one warm start in 10,000 as 'Not Set' or 'Unknown'; a cold one is solved.
            highs.clearSolver()
            highs.run()
        return self._answer(highs, integer)

    def _loosen(self, highs: highspy.Highs, loose: Collection[int]) -> None:
        """Leaves out these rows, and puts back those of the solve before."""
        for row in self._loose - set(loose):
            highs.changeRowBounds(row, self._row_lower[row], self._row_upper[row])
        for row in set(loose) - self._loose:
            highs.changeRowBounds(row, -INFINITY, INFINITY)
        self._loose = set(loose)

    def _answer(self, highs: highspy.Highs, integer: bool) -> Solution:
        solution, info = highs.getSolution(), highs.getInfo()
        status = highs.getModelStatus()
        if not integer and status != highspy.HighsModelStatus.kOptimal:
            raise RuntimeError(f"the linear program ended as '{highs.modelStatusToString(status)}'")
        # An LP's optimum may miss a row by a hair once it is scaled back, and is the optimum all the same.
        found = not integer or info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        objective = -float(info.objective_function_value) if found else -INFINITY
        bound = -float(info.mip_dual_bound) if integer else objective
        valid = solution.dual_valid
        duals = np.array(solution.row_dual) if valid else np.zeros(len(self._row_lower))
        reduced = np.array(solution.col_dual) if valid else np.zeros(len(self._lower))
        return Solution(np.array(solution.col_value), duals, reduced, objective, bound)

    def _model(self) -> highspy.Highs:
        if self._highs is None:
            lp = highspy.HighsLp()
            lp.num_col_, lp.num_row_ = len(self._cost), len(self._row_lower)
            lp.col_cost_, lp.col_lower_, lp.col_upper_ = map(np.array, (self._cost, self._lower, self._upper))
            lp.row_lower_, lp.row_upper_ = np.array(self._row_lower), np.array(self._row_upper)
            lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
            lp.a_matrix_.start_ = np.array(self._starts, dtype=np.int32)
            lp.a_matrix_.index_ = np.array(self._index, dtype=np.int32)
            lp.a_matrix_.value_ = np.array(self._value, dtype=np.float64)
            self._highs = highspy.Highs()
            self._highs.setOptionValue("output_flag", False)
            self._highs.setOptionValue("mip_rel_gap", 0.0)
            self._highs.passModel(lp)
        return self._highs
