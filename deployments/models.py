"""Which model file a replica holds: the one that was profiled, wherever it lies now, and no other."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deployments.config import Manifest
from deployments.profiles import file_sha256
from deployments.runtimes import ModelError


@dataclass(frozen=True, slots=True)
class Model:
    """A unit's model as it was profiled."""

    unit: str
    path: str
    sha256: str  # of the file that was profiled
    answered: tuple[int, ...]  # classes of the first validation samples, as profiled
    manifest: Manifest


def profiled_file(paths: Iterable[str], digest: str) -> Path:
    """The first of these files whose SHA-256 is `digest`; ModelError where none is.

    A repository may have moved since a deployment was made: then the same file lies elsewhere.
    """
    amiss = []
    for path in dict.fromkeys(map(Path, paths)):
        try:
            found = file_sha256(path)
        except OSError as error:
            amiss.append(f"{path}: {error.strerror}")
            continue
        if found == digest:
            return path
        amiss.append(f"{path}: not the file that was profiled: its SHA-256 is {found[:12]}..., not {digest[:12]}...")
    raise ModelError("; ".join(amiss) + ": restore it, or profile the new one elsewhere and `pliant apply` that")
