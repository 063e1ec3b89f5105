"""The configuration is checked once: what is wrong is named, with its value and a remedy."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from deployments.config import (
    AccessConfig,
    ApplicationConfig,
    ClusterConfig,
    ConfigError,
    Emulation,
    HttpConfig,
    PeekConfig,
    PlannerConfig,
    PoolConfig,
    TlsConfig,
    load_config,
    load_manifest,
    peek_models,
)

GOOD = "pools: {edge: {devices: 2}}\napplications: {toy: {slo_s: 0.1}}\n"


def written(directory: Path, text: str, name: str = "cluster.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD + "models: here\n"))
    assert config.models == str(tmp_path / "here")
    assert config.pools["edge"].devices == 2


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = ClusterConfig(
        pools={"edge": PoolConfig(emulated=Emulation(3.0, 0.01))},
        applications={"toy": ApplicationConfig(0.1, variants=("a", "b"))},
        models=str(tmp_path / "m"),
        profiles=str(tmp_path / "p"),
        planner=PlannerConfig(state=str(tmp_path / "s.json")),
        http=HttpConfig(tls=TlsConfig(str(tmp_path / "c.pem"), str(tmp_path / "k.pem"))),
        access=AccessConfig(str(tmp_path / "tokens.yaml")),
    )
    assert load_config(written(tmp_path, yaml.safe_dump(asdict(config)))) == config


def test_files_are_found_beside_the_configuration(tmp_path: Path) -> None:
    text = "pools: {edge: {}}\napplications: {a: {}}\nhttp: {tls: {cert: c.pem, key: k.pem, clients: ca.pem}}\n"
    config = load_config(written(tmp_path, text + "access: {tokens: tokens.yaml}"))
    tls = [str(tmp_path / name) for name in ("c.pem", "k.pem", "ca.pem")]
    assert config.http.tls == TlsConfig(*tls)
    assert config.access.tokens == str(tmp_path / "tokens.yaml")
    assert config.planner.state == str(tmp_path / "state.json")


def test_tls_is_the_listeners_own(tmp_path: Path) -> None:
    text = "pools: {edge: {}}\napplications: {a: {}}\nhttp: {ingress: proxy, tls: {cert: c.pem, key: k.pem}}"
    with pytest.raises(ConfigError, match="ingress: proxy"):
        load_config(written(tmp_path, text))


def test_a_peek_is_a_word_or_a_model_beside_the_file(tmp_path: Path) -> None:
    text = "pools: {edge: {}}\napplications: {a: {peek: none}, b: {peek: {model: tiny.onnx}}, c: {}}"
    config = load_config(written(tmp_path, text))
    assert config.applications["a"].peek == "none"
    assert config.applications["b"].peek == PeekConfig(str(tmp_path / "tiny.onnx"))
    assert peek_models(config) == {"b": tmp_path / "tiny.onnx"}
    assert load_config(written(tmp_path, yaml.safe_dump(asdict(config)))) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools: {edge: {}}\napplications: {toy: {peek: kn}}", "peek is 'kn'; it is knn, none, or model: and an ONNX"),
        ("pools: {edge: {}}\napplications: {toy: {peek: {modle: a}}}", "unknown key 'modle'; did you mean 'model'?"),
        ("pools: {edge: {}}\napplications: {toy: {}}\nplanner: {cells: 0}", "cells is 0; at least one"),
        ("pools: {edge: {}}\napplications: {toy: {}}\nplanner: {mix_memory: 0}", "mix_memory is 0; it is a number"),
        ("pools: {edge: {device: 2}}\napplications: {toy: {}}", "unknown key 'device'; did you mean 'devices'?"),
        ("pools: {edge: {}}\napplications: {toy: {slo: 1}}", "did you mean 'slo_s'?"),
        ("pool: {edge: {}}\napplications: {toy: {}}", "did you mean 'pools'?"),
        ("applications: {toy: {}}", "'pools' is missing"),
        ("pools: {}\napplications: {toy: {}}", "at least one pool"),
        ("pools: {edge: {devices: two}}\napplications: {toy: {}}", "expected int, got 'two'"),
        ("pools: {edge: {devices: true}}\napplications: {toy: {}}", "expected int, got True"),
        ("pools: {edge: {devices: 0}}\napplications: {toy: {}}", "at least one"),
        ("pools: {edge: {reserved: .nan}}\napplications: {toy: {}}", "not a finite number"),
        ("pools: {edge: {emulated: {slowdown: 0.5}}}\napplications: {toy: {}}", "cannot be below 1"),
        ("pools: {edge: {}}\napplications: {toy: {floor: 90}}", "so write 0.9 for 90 %"),
        ("pools: {edge: {}}\napplications: {toy: {slo_s: -1}}", "must be positive"),
        ("pools: {edge: {}}\napplications: {toy: {}}\nplanner: {policy: bets}", "known are pliant, best, cheapest"),
        (
            "pools: {edge: {}}\napplications: {toy: {}}\nplanner: {fairness: fair}",
            "known: efficient, max_min, proportion",
        ),
        ("pools: {edge: {}}\napplications: {toy: {}}\nplanner: {violations: 5}", "so write 0.05 for 5 %"),
        ("pools: {edge: {}}\napplications: {toy: {}}\nplanner: {violations: 1}", "is none"),
        ("pools: {edge: {}}\napplications: {toy: {}}\nhttp: {port: 0}", "1 to 65535"),
        ("pools: [edge]\napplications: {toy: {}}", "expected keys and values"),
        ("pools: {edge: {}\n", "not valid YAML"),
        ("just text", "expected keys and values"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(tmp_path, text))
    assert says in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")


MANIFEST = {
    "input": {"name": "input", "shape": [4]},
    "output": {"name": "scores", "shape": [2]},
    "classes": ["no", "yes"],
    "slo_s": 0.1,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ["only"]}, "at least two"),
        ({"classes": ["a", "b", "c"]}, "does not fit 3 classes"),
        ({"slo_s": 0}, "must be positive"),
        ({"input": {"name": "input", "shape": [4], "datatype": "FLOAT"}}, "is none of BOOL"),
        ({"input": {"name": "input", "shape": [-1]}}, "must be fixed"),
        ({"inputs": 3}, "did you mean 'input'?"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(tmp_path: Path, change: dict[str, object], says: str) -> None:
    written(tmp_path, yaml.safe_dump(MANIFEST | change), "application.yaml")
    with pytest.raises(ConfigError) as raised:
        load_manifest(tmp_path)
    assert says in str(raised.value)


def test_an_application_is_named_after_its_directory(tmp_path: Path) -> None:
    written(tmp_path, yaml.safe_dump(MANIFEST | {"classes": [0, 1]}), "application.yaml")
    manifest = load_manifest(tmp_path)
    assert manifest.name == tmp_path.name
    assert manifest.classes == ("0", "1")
