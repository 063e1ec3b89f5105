"""Recordings: joint correctness, exact means, and a file that is refused where it does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.recordings import Recorded, Recording, RecordingError, comonotone, load_recording, save_recording


def test_made_recordings_have_the_accuracies_and_agree_as_much_as_they_can() -> None:
    recording = comonotone([0.7, 0.9, 0.9959], seed=1)
    assert recording.correct.mean(axis=1) == pytest.approx([0.7, 0.9, 0.9959], abs=1e-4)
    assert (recording.correct[0] <= recording.correct[1]).all(), "right where a worse one is"
    assert (recording.correct[1] <= recording.correct[2]).all()


def test_another_seed_has_other_hard_samples() -> None:
    assert (comonotone([0.5], 1).answered != comonotone([0.5], 2).answered).any()


RECORDING = Recording(np.array([0, 1, 2]), np.array([[0, 1, 1], [2, 1, 2]]))


@pytest.mark.parametrize("seen", [False, True])
def test_a_saved_recording_comes_back(tmp_path: Path, seen: bool) -> None:
    whole = (
        replace(RECORDING, estimates=np.arange(6).reshape(3, 2) / 6, cell=np.array([0, 0, 1])) if seen else RECORDING
    )
    save_recording(tmp_path / "r.parquet", whole, ["k/a", "k/b"], samples="xyz")
    back = load_recording(tmp_path / "r.parquet", ["k/b", "k/a"], samples="xyz")
    assert back.answered.tolist() == whole.answered[::-1].tolist()
    assert back.correct.tolist() == [[False, True, True], [True, True, False]]
    assert (back.estimates is not None) == seen == (back.cell is not None)


def test_a_recording_of_other_models_or_samples_is_refused(tmp_path: Path) -> None:
    save_recording(tmp_path / "r.parquet", RECORDING, ["k/a", "k/b"], samples="xyz")
    with pytest.raises(RecordingError, match="not a recording of these"):
        load_recording(tmp_path / "r.parquet", ["k/a", "k/b"], samples="other")
    with pytest.raises(RecordingError, match="no answers of 'k/c'"):
        load_recording(tmp_path / "r.parquet", ["k/c"], samples="xyz")
    with pytest.raises(RecordingError, match="no recording"):
        load_recording(tmp_path / "none.parquet", ["k/a"])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecordingError, match=r"\[option, sample\]"):
        Recording(np.zeros(3, int), np.zeros((2, 4), int))
    with pytest.raises(RecordingError, match="estimates of shape"):
        replace(RECORDING, estimates=np.zeros((2, 3)))


def test_without_estimates_every_request_has_the_profiled_accuracy() -> None:
    assert Recorded(RECORDING, (0.6, 0.8)).estimate([2, 0]) == [(0.6, 0.8)] * 2
