"""The documentation says what the code does: every configuration key with type and default, examples that load."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import pytest
import yaml

from deployments import config
from deployments.config import ClusterConfig, Manifest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "configuration.md"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
CONFIGURED = tuple(
    kind
    for kind in vars(config).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == config.__name__
)
WORDS = {int: "integer", float: "number", str: "text", bool: "true/false"}


def documented(kind: type) -> dict[str, tuple[str, str]]:
    """Key -> (type, default) of the table under the heading that ends with the dataclass's name."""
    text = REFERENCE.read_text(encoding="utf-8")
    section = re.search(rf"^###? .*: `{kind.__name__}`$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/configuration.md: no heading ends with `{kind.__name__}`"
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", section[1], re.MULTILINE)
    return {key: (what, default) for key, what, default in rows}


def written_type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else written_type(part) for part in arguments)
    if origin is tuple:
        return f"list of {written_type(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"map of {written_type(arguments[1])}"
    return WORDS.get(hint) or f"`{hint.__name__}`"


def written_default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "all defaults"
    if field.default is dataclasses.MISSING:
        return "required"
    plain = {None: "null", True: "true", False: "false", "": '""'}
    is_plain = field.default is None or isinstance(field.default, bool) or field.default == ""
    return f"`{plain[field.default] if is_plain else field.default}`"


def snippets(page: Path) -> list[Any]:
    """The YAML blocks of a page, as plain data."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_configuration_has_dataclasses() -> None:
    assert {ClusterConfig, Manifest} < set(CONFIGURED)


@pytest.mark.parametrize("kind", CONFIGURED, ids=lambda kind: kind.__name__)
def test_every_key_is_documented_with_its_type_and_default(kind: type) -> None:
    hints = typing.get_type_hints(kind)
    expected = {f.name: (written_type(hints[f.name]), written_default(f)) for f in dataclasses.fields(kind)}
    assert documented(kind) == expected


def test_the_example_cluster_loads() -> None:
    loaded = config.load_config(ROOT / "examples" / "cluster.yaml")
    assert loaded.models == str(ROOT / "examples" / "models")


def test_the_example_of_serve_names_the_builder_and_listens_on_this_machine_only() -> None:
    example = yaml.safe_load((ROOT / "examples" / "serve.yaml").read_text(encoding="utf-8"))
    (application,) = example["applications"]
    assert example["proxy_location"] == "Disabled"
    cluster = config.load_config(ROOT / application["args"]["config"])
    assert (cluster.http.host, cluster.http.ingress) == ("127.0.0.1", "auto")
    assert application["import_path"] == "deployments.app:build"
    assert application["route_prefix"] == "/"
    assert (ROOT / application["args"]["config"]).is_file()


def test_the_yaml_of_the_readme_is_a_cluster_and_an_application() -> None:
    manifest, cluster = snippets(ROOT / "README.md")
    parsed = config.parse(Manifest, manifest, "README.md")
    assert parsed.output.shape == (len(parsed.classes),)
    config.check(config.parse(ClusterConfig, cluster, "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to pages and their headings; pictures are made by hand and may follow."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:planner|deployments|profiling|cluster|tests|examples|docs)/[\w/.-]+\.\w+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []
