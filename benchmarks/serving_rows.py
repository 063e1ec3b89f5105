"""The remembered rows of `benchmarks/serving.py`, in JSON lines: a run that was stopped goes on where it was."""

import dataclasses
import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.serving_measures import Figures
from benchmarks.serving_ramp import Ramp, Step

ROOT = Path(__file__).resolve().parent.parent
MEASURING = ("serving_client", "serving_measures", "serving_model", "serving_ramp", "serving_search", "serving_visit")
OURS = ("cluster", "deployments", "planner", "profiling")


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """Which row: a server, a run, and what was measured of it."""

    peer: str
    run: int
    quick: bool
    ramp: Ramp | None = None

    def text(self) -> str:
        """As it is remembered; where the models lie does not matter."""
        fields = dataclasses.asdict(self)
        if self.ramp is not None:
            fields["ramp"]["directory"] = Path(self.ramp.directory).name
        return json.dumps(fields, sort_keys=True)


class Rows:
    """Rows by key; those of other code count only when `stale` ones do."""

    def __init__(self, path: Path, stale: bool = False) -> None:
        self._path, self._found = path, dict[str, dict[str, Any]]()
        for entry in _entries(path):
            if stale or entry["code"] == digest(entry["ours"]):
                self._found[entry["key"]] = entry

    def __contains__(self, key: Key) -> bool:
        return key.text() in self._found

    def add(self, key: Key, result: dict[str, Any]) -> None:
        """Remember a row, in the file too."""
        ours = key.peer == "pliant"
        entry = {"key": key.text(), "ours": ours, "code": digest(ours), **result}
        self._found[key.text()] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def figures(self, key: Key) -> Figures:
        """A row of the first part."""
        return Figures(**self._found[key.text()]["figures"])

    def steps(self, key: Key) -> list[Step]:
        """A row of the second part."""
        return [Step(**step) for step in self._found[key.text()]["steps"]]


def _entries(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line that an interruption cut short
        if {"key", "ours", "code"} <= entry.keys():
            yield entry


def digest(ours: bool) -> str:
    """Of the code that measures, and for Pliant's rows of all of Pliant."""
    files = [ROOT / "benchmarks" / f"{name}.py" for name in MEASURING]
    files += [*sorted((ROOT / "benchmarks" / "peers").glob("*.py")), ROOT / "cluster" / "engine.py"]
    for package in OURS if ours else ():
        files += sorted((ROOT / package).rglob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()[:12]
