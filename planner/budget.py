"""The time that a search may take, by the caller's clock, or by HiGHS' own account where none is given."""

from collections.abc import Callable

Clock = Callable[[], float]  # seconds since any fixed moment, as time.monotonic

BESIDE = 0.6  # seconds of building models for each that HiGHS runs, about, where no clock is given


class Budget:
    """How much of a time limit is left."""

    def __init__(self, limit_s: float, clock: Clock | None) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._began = clock() if clock else 0.0
        self._run_s = 0.0

    def spend(self, run_s: float) -> None:
        """Takes note of HiGHS' time; a clock needs no telling."""
        self._run_s += run_s

    def charge(self, spent_s: float) -> None:
        """Takes note of what a search with a budget of its own has spent, building models included."""
        self._run_s += spent_s / (1 + BESIDE)

    @property
    def spent_s(self) -> float:
        """Seconds gone by."""
        return self._clock() - self._began if self._clock else self._run_s * (1 + BESIDE)

    @property
    def left_s(self) -> float:
        """Seconds left, none or less where it is over."""
        return self._limit_s - self.spent_s
