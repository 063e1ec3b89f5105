"""Data sets are split for good: no sample and no person is in two parts, and loading is the same each time."""

import os
import pickle

import numpy as np
import pytest

from profiling import hapt
from profiling.datasets import DATASETS, Dataset, DatasetError, Split, load_dataset

HERE = [name for name, dataset in DATASETS.items() if dataset.available() and name != "fashion"]


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return {name: load_dataset(name) for name in HERE}


@pytest.mark.parametrize("name", HERE)
def test_no_group_is_in_two_parts(splits, name):
    split = splits[name]
    groups = [set(part.group.tolist()) for part in (split.train, split.validation, split.heldout)]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("name", HERE)
def test_no_sample_is_in_two_parts(splits, name):
    split = splits[name]
    parts = [{x.tobytes() for x in part.x} for part in (split.train, split.validation, split.heldout)]
    shared = parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert not shared


@pytest.mark.parametrize("name", HERE)
def test_parts_have_the_promised_types_and_all_classes(splits, name):
    split = splits[name]
    for part in (split.train, split.validation, split.heldout):
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int64
        assert np.isfinite(part.x).all()
        assert set(part.y.tolist()) == set(range(len(split.classes)))
    assert len(split.heldout.y) >= 800


def test_activity_has_all_thirty_people(splits):
    split = splits["activity"]
    people = [part.group for part in (split.train, split.validation, split.heldout)]
    assert set(np.concatenate(people).tolist()) == set(range(1, 31))
    assert sum(map(len, people)) == 12278


def test_loading_twice_gives_the_same(splits):
    again = load_dataset("digits")
    np.testing.assert_array_equal(again.heldout.x, splits["digits"].heldout.x)
    np.testing.assert_array_equal(again.train.y, splits["digits"].train.y)


def test_unknown_and_missing_data_sets_say_what_to_do():
    with pytest.raises(DatasetError, match="unknown data set 'cats'; known are digits"):
        load_dataset("cats")
    absent = Dataset("moon", "", "", "apt-get install moon", lambda: False, lambda: pytest.fail("was read"))
    with pytest.raises(DatasetError, match="'moon' is not installed: apt-get install moon"):
        absent.load()


class Malicious:
    """Pickles as a call of os.system."""

    def __reduce__(self):
        return os.system, ("echo owned > /dev/null",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_unpickler_refuses_to_run_anything(protocol):
    with pytest.raises(pickle.UnpicklingError, match=r"system, which is not allowed"):
        hapt.unpickle(pickle.dumps(Malicious(), protocol))


def test_the_unpickler_refuses_names_inside_allowed_modules():
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.fromfile, which is not allowed"):
        hapt.unpickle(b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.")


def test_the_unpickler_rebuilds_shells_only():
    with pytest.raises(pickle.UnpicklingError, match="only pandas shells"):
        hapt.unpickle(b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.")


def test_the_unpickler_reads_arrays():
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    packed = pickle.dumps(array, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(hapt.unpickle(packed), array)


def test_another_file_than_the_pinned_one_is_not_unpickled(tmp_path, monkeypatch):
    other = tmp_path / "HAPT.pkl.gz"
    other.write_bytes(b"something else")
    monkeypatch.setattr(hapt, "recordings_file", lambda: other)  # the path is the package's, not an argument
    with pytest.raises(DatasetError, match=r"sha256 is .*, expected 231bf6d5"):
        load_dataset("activity")
