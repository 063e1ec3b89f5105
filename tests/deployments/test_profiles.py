"""Profiles come back as they were saved, are merged by application and pool, and refuse what they do not fit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.config import Emulation, PoolConfig
from deployments.profiles import (
    REPLICA_START_S,
    Latency,
    ModelTrust,
    Peek,
    ProfileError,
    Profiles,
    VariantProfile,
    file_sha256,
    load_profiles,
    save_profiles,
)
from planner.profiles import LatencyCurve


def variant(application="digits", name="small", answered=(0, 1, 1, 0), sha256="aa"):
    return VariantProfile(
        application, name, 0.5, 1000, 10, sha256, np.array([0, 1, 0, 0]), np.array(answered), classes=3
    )


def latency(application="digits", name="small", pool="cpu", batch=1, p95_s=0.02):
    return Latency(application, name, pool, batch, 0.01, p95_s, 0.03, 5, emulated=False)


def peek(count=1):
    rng = np.random.default_rng(0)
    return Peek(
        rng.random(6, np.float32),
        rng.random((2, 6), np.float32),
        rng.random((4, 2), np.float32),
        np.array([0, 1, 0, 0]),
        np.ones((count, 4), np.bool_),
        tuple(f"v{i}" for i in range(count)),
        5,
        2.0,
    )


def profiles(application="digits", pools=("cpu",), sha256="aa"):
    rows = tuple(latency(application, pool=pool, batch=b, p95_s=0.01 * b) for pool in pools for b in (4, 1))
    return Profiles((variant(application, sha256=sha256),), rows, {application: peek()})


def test_profiles_come_back_as_they_were_saved(tmp_path):
    save_profiles(tmp_path, profiles())
    found = load_profiles(tmp_path)
    saved = found.variant("digits", "small")
    assert found.latencies == profiles().latencies
    assert (saved.load_s, saved.memory_bytes, saved.file_bytes, saved.sha256, saved.classes) == (0.5, 1000, 10, "aa", 3)
    np.testing.assert_array_equal(saved.answered, [0, 1, 1, 0])
    for f in dataclasses.fields(Peek):
        np.testing.assert_array_equal(getattr(found.peeks["digits"], f.name), getattr(peek(), f.name))


def test_the_trust_in_a_model_comes_back_as_it_was_saved(tmp_path):
    trust = ModelTrust("ab", True, 2.0, 8.0, np.ones((1, 4), np.float32))
    kept = dataclasses.replace(peek(), estimates=np.zeros((1, 4), np.float32), kappa=float("inf"), model=trust)
    save_profiles(tmp_path, dataclasses.replace(profiles(), peeks={"digits": kept}))
    found = load_profiles(tmp_path).peeks["digits"]
    assert (found.kappa, found.kernel, found.estimates.tolist()) == (float("inf"), False, [[0.0] * 4])
    assert (found.model.sha256, found.model.logits, found.model.temperature) == ("ab", True, 2.0)
    assert found.model.estimates.tolist() == [[1.0] * 4]


def test_recall_counts_by_true_class_and_falls_back_to_accuracy():
    profile = variant()
    assert profile.accuracy == 0.75
    assert profile.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert profile.recall == (2 / 3, 1.0, 0.75)


def test_the_planners_words_are_made_from_a_profile():
    option = variant().option
    assert (option.name, option.unit, option.recall) == ("digits/small", "digits/small", variant().recall)
    assert (variant().unit.memory_bytes, variant().unit.load_s) == (1000, 0.5 + REPLICA_START_S)


def test_a_latency_curve_is_the_95th_percentile_by_batch():
    assert profiles().latency_curve("digits", "small", "cpu") == LatencyCurve((1, 4), (0.01, 0.04))


def test_saving_one_application_leaves_the_others(tmp_path):
    save_profiles(tmp_path, profiles("digits"))
    save_profiles(tmp_path, profiles("voice"))
    whole = save_profiles(tmp_path, profiles("digits", pools=("gpu",)))
    assert load_profiles(tmp_path).applications == whole.applications == ("digits", "voice")
    assert whole.pools("voice") == ("cpu",)
    assert set(whole.peeks) == {"digits", "voice"}


def test_saving_one_pool_replaces_only_its_rows():
    old = profiles(pools=("cpu", "gpu"))
    newer = Profiles((variant(),), (latency(pool="gpu", p95_s=9.0),), {"digits": peek()})
    whole = old.merged(newer)
    assert whole.latency_curve("digits", "small", "cpu") == old.latency_curve("digits", "small", "cpu")
    assert whole.latency_curve("digits", "small", "gpu") == LatencyCurve((1,), (9.0,))


def test_latencies_of_a_changed_model_are_dropped_on_every_pool():
    whole = profiles(pools=("cpu", "gpu"), sha256="old").merged(profiles(pools=("gpu",), sha256="new"))
    assert whole.pools("digits") == ("gpu",)


def test_a_variant_that_is_gone_leaves_no_rows():
    old = Profiles((variant(), variant(name="big")), (latency(), latency(name="big", pool="gpu")), {"digits": peek()})
    whole = old.merged(profiles())
    assert {row.variant for row in whole.latencies} == {"small"}
    assert [v.variant for v in whole.of("digits")] == ["small"]


def test_missing_profiles_say_what_to_run(tmp_path):
    with pytest.raises(ProfileError, match="run `pliant profile` first"):
        load_profiles(tmp_path / "nothing")


def test_another_schema_version_is_refused(tmp_path):
    save_profiles(tmp_path, profiles())
    path = tmp_path / "latency.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"pliant.profiles": b"99"}), path)
    with pytest.raises(ProfileError, match="written in version 99, this Pliant reads 1"):
        load_profiles(tmp_path)


def test_a_broken_table_is_named(tmp_path):
    save_profiles(tmp_path, profiles())
    (tmp_path / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(ProfileError, match=r"samples\.parquet: cannot be read"):
        load_profiles(tmp_path)


def test_a_missing_sneakpeek_model_is_named(tmp_path):
    save_profiles(tmp_path, profiles())
    (tmp_path / "peek" / "digits.npz").unlink()
    with pytest.raises(ProfileError, match=r"digits\.npz: missing or broken"):
        load_profiles(tmp_path)


@pytest.mark.parametrize(
    ("application", "name", "pool", "message"),
    [
        ("voice", "small", "cpu", "application 'voice' is not profiled"),
        ("digits", "huge", "cpu", "variant 'huge' is not profiled"),
        ("digits", "small", "tpu", "'digits/small' is not profiled on pool 'tpu'"),
    ],
)
def test_what_is_not_profiled_is_named(application, name, pool, message):
    with pytest.raises(ProfileError, match=message):
        profiles().latency_curve(application, name, pool)


def test_a_model_that_changed_since_it_was_profiled_is_refused(tmp_path):
    path = tmp_path / "digits" / "small" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"measured")
    measured = profiles(sha256=file_sha256(path))
    measured.check_models(tmp_path)
    path.write_bytes(b"changed")
    with pytest.raises(ProfileError, match="has changed since it was profiled; re-profile"):
        measured.check_models(tmp_path)
    path.unlink()
    with pytest.raises(ProfileError, match="no such model file"):
        measured.check_models(tmp_path, ["digits"])


def test_a_pool_that_is_another_than_when_it_was_profiled_is_refused(tmp_path):
    was = PoolConfig(emulated=Emulation(600.0)).speed
    save_profiles(tmp_path, dataclasses.replace(profiles(), pools_as={"digits/cpu": was}))
    found = load_profiles(tmp_path)
    found.check_pools({"cpu": was, "another": "4 cores"})  # what was never measured shows elsewhere
    for now in (PoolConfig(), PoolConfig(emulated=Emulation(6000.0)), PoolConfig(cores=2, emulated=Emulation(600.0))):
        with pytest.raises(ProfileError, match=r"slowdown 600.*run `pliant profile`"):
            found.check_pools({"cpu": now.speed})
    newer = dataclasses.replace(profiles(), pools_as={"digits/cpu": "2 cores"})
    save_profiles(tmp_path, newer).check_pools({"cpu": "2 cores"})


def test_an_interrupted_save_leaves_the_old_profiles(tmp_path):
    save_profiles(tmp_path, profiles())
    unwritable = dataclasses.replace(variant(), sha256=7)  # not a string: the table cannot be made
    with pytest.raises(Exception, match="Expected bytes, got a 'int' object"):
        save_profiles(tmp_path, Profiles((unwritable,), (), {"digits": peek()}))
    assert load_profiles(tmp_path).variant("digits", "small").sha256 == "aa"
    assert not list(tmp_path.glob(".writing-*"))


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewritten(change):
    def act(path):
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return act


def with_column(name, value):
    def change(table):
        at = table.schema.get_field_index(name)
        return table.set_column(at, table.schema.field(at), pa.array([value] * len(table), table.schema.field(at).type))

    return rewritten(change)


CORRUPT = {
    "cut off": ("latency.parquet", truncated, "cannot be read"),
    "of no kind": ("variants.parquet", lambda path: path.write_bytes(b"accuracy,load_s\n1,2\n"), "cannot be read"),
    "empty": ("samples.parquet", lambda path: path.write_bytes(b""), "cannot be read"),
    "a column less": (
        "latency.parquet",
        rewritten(lambda t: t.drop_columns(["p95_s"])),
        "column 'p95_s' is missing .there are application",
    ),
    "another type": (
        "variants.parquet",
        rewritten(lambda t: t.set_column(t.schema.get_field_index("load_s"), "load_s", pa.array(["fast"]))),
        "column 'load_s' holds string, not double",
    ),
    "NaN": ("latency.parquet", with_column("p95_s", float("nan")), "row 0: p95_s is nan"),
    "infinite": ("variants.parquet", with_column("load_s", float("inf")), "row 0: load_s is inf"),
    "negative": ("variants.parquet", with_column("memory_bytes", -1), "row 0: memory_bytes is -1"),
    "no value": ("latency.parquet", with_column("p95_s", None), "row 0 has no p95_s"),
    "a batch of none": ("latency.parquet", with_column("batch", 0), "row 0: batch is 0"),
    "a class too many": ("samples.parquet", with_column("answered", 3), "answered class 3 of 3 classes"),
    "peek cut off": ("peek/digits.npz", truncated, "missing or broken"),
}


@pytest.mark.parametrize(("file", "corrupt", "message"), CORRUPT.values(), ids=CORRUPT)
def test_corrupt_profiles_are_refused_by_file_and_reason(tmp_path, file, corrupt, message):
    save_profiles(tmp_path, profiles())
    corrupt(tmp_path / file)
    with pytest.raises(ProfileError, match=message) as raised:
        load_profiles(tmp_path)
    assert file in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((4, 2), np.nan, np.float32)}, "features holds numbers that are not finite"),
        ({"evidence": float("nan")}, "evidence holds numbers that are not finite"),
        ({"labels": np.array([0, 1])}, r"has 2 of 'sample', others have 4"),
        ({"mean": np.zeros(5, np.float32)}, r"has 6 of 'input', others have 5"),
        ({"correct": np.ones(4, np.bool_)}, r"correct has shape \[4\], not \[variant, sample\]"),
    ],
)
def test_a_corrupt_sneakpeek_model_is_refused(tmp_path, change, message):
    broken = dataclasses.replace(peek(), **change)
    save = dataclasses.replace(profiles(), peeks={"digits": broken})
    with pytest.raises(ProfileError, match=message):
        save_profiles(tmp_path, save), load_profiles(tmp_path)


def test_a_file_that_more_was_added_to_is_read(tmp_path):
    save_profiles(tmp_path, profiles())
    path = tmp_path / "latency.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("note", pa.array(["x"] * len(table))), path)
    assert load_profiles(tmp_path).latencies == profiles().latencies
