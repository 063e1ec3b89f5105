"""What was counted is told as Triton tells it, and loading is the planner's alone."""

import pytest

from deployments.counters import Statistics, refuse_loading, repository_index
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import BadRequest, NotOffered, UnknownApplication

NOTHING = {"count": 0, "ns": 0}


def busy() -> Statistics:
    """One request of three samples, in batches of two and one on two variants, and one refused."""
    statistics = Statistics(["toy", "zoo"], ["toy/good", "toy/lazy", "zoo/any"], epoch_s=1000.0)
    statistics.ran("toy/good", 2, queued_s=0.03, infer_s=0.01)
    statistics.ran("toy/lazy", 1, queued_s=0.01, infer_s=0.002)
    statistics.applications["toy"].answered(3, 0.05, now=7.5)
    statistics.units["toy/good"].answered(2, 0.05, now=7.5)
    statistics.units["toy/lazy"].answered(1, 0.05, now=7.5)
    statistics.applications["toy"].failed(0.001)
    return statistics


def test_an_applications_counters_are_those_of_its_requests_and_all_its_batches() -> None:
    application, good, lazy = busy().body("toy")["model_stats"]
    assert [entry["name"] for entry in (application, good, lazy)] == ["toy", "toy/good", "toy/lazy"]
    assert application["version"] == "1"
    assert application["last_inference"] == 1_007_500
    assert (application["inference_count"], application["execution_count"]) == (3, 2)
    assert application["inference_stats"] == {
        "success": {"count": 1, "ns": 50_000_000},
        "fail": {"count": 1, "ns": 1_000_000},
        "queue": {"count": 3, "ns": 40_000_000},
        "compute_input": NOTHING,
        "compute_infer": {"count": 3, "ns": 22_000_000},
        "compute_output": NOTHING,
    }
    assert [(b["batch_size"], b["compute_infer"]) for b in application["batch_stats"]] == [
        (1, {"count": 1, "ns": 2_000_000}),
        (2, {"count": 1, "ns": 10_000_000}),
    ]
    assert (good["inference_count"], good["execution_count"]) == (2, 1)
    assert lazy["inference_stats"]["fail"] == NOTHING


def test_nothing_has_happened_yet() -> None:
    (application, _) = busy().body("zoo")["model_stats"]
    assert application["last_inference"] == 0
    assert application["batch_stats"] == []


def test_all_are_told_when_none_is_named() -> None:
    names = [entry["name"] for entry in busy().body()["model_stats"]]
    assert names == ["toy", "toy/good", "toy/lazy", "zoo", "zoo/any"]


def test_an_unknown_application_has_no_statistics() -> None:
    with pytest.raises(UnknownApplication, match="did you mean 'toy'"):
        busy().body("to")


def test_the_body_is_the_grpc_message_too() -> None:
    message = pb.ModelStatisticsResponse(**busy().body())
    assert message.model_stats[0].batch_stats[1].compute_infer.ns == 10_000_000


def test_the_index_says_who_is_ready() -> None:
    index = repository_index(["toy", "zoo"], lambda name: name == "toy")
    assert index == [
        {"name": "toy", "version": "1", "state": "READY", "reason": ""},
        {"name": "zoo", "version": "1", "state": "UNAVAILABLE", "reason": "no device up yet"},
    ]
    assert repository_index(["toy", "zoo"], lambda name: name == "toy", only_ready=True) == index[:1]
    assert len(pb.RepositoryIndexResponse(models=index).models) == 2


def test_loading_is_refused_with_the_remedy() -> None:
    error = refuse_loading("toy", {"toy": None}, "unload")
    assert isinstance(error, NotOffered | BadRequest)
    assert error.status == 400
    assert "unload is not offered; the planner loads and unloads" in str(error)
    with pytest.raises(UnknownApplication):
        refuse_loading("to", {"toy": None})
