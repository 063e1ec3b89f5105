"""A disk that is full: what is only remembered is given up with one warning, and what is asked for is an error.

The disk is a real one of 64 KiB, in a mount namespace of a process of its own.
"""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.events import Tick

ROOT = Path(__file__).resolve().parent.parent.parent
MOUNT = "mount -t tmpfs -o size={size} none {disk} && exec {command}"


def on_a_small_disk(work: str, disk: Path, size: str = "64k") -> str:
    """What `work`, a function of this file, prints when the directory `disk` is a disk of that size."""
    disk.mkdir()
    inside = f"{sys.executable} -c 'from tests.deployments.test_full_disk import {work}; {work}()' {disk}"
    script = MOUNT.format(size=size, disk=disk, command=inside)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace to be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(disk: Path) -> None:
    """Take what room there is."""
    try:
        with (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        pass


class Machine:
    """A router machine that has nothing to do."""

    def handle(self, event, now):
        del event, now
        return []


def remember() -> None:
    """The journal and the memory of demand while the disk fills up, and after a restart on the full disk."""
    from deployments.journal import Journalled, read_journal
    from deployments.memory import Memory

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    disk = Path(sys.argv[1])
    memory = Memory(str(disk / "state.json"))
    memory.save({"tiny": 7.0})
    for start in range(2):
        machine = Journalled(Machine(), disk / "journal.jsonl", "scene")
        for now in range(1000):
            if (start, now) == (0, 10):
                fill(disk)
            assert machine.handle(Tick(), float(now)) == []
        machine.close()
    for _ in range(3):
        memory._saved_at = float("-inf")
        memory.save({"tiny": 9.0})
    print("journal has", len(list(read_journal(disk / "journal.jsonl"))) >= 10)
    print("remembered", Memory(str(disk / "state.json")).demand_rps(time.time()))
    print("left over", [path.name for path in disk.iterdir() if path.name.startswith(".")])
    Journalled(Machine(), disk / "filler" / "journal.jsonl", "scene").handle(Tick(), 0.0)  # where nothing can be


def test_the_journal_and_the_memory_end_with_a_warning_each_and_keep_what_they_had(tmp_path: Path) -> None:
    said = on_a_small_disk("remember", tmp_path / "disk").splitlines()
    assert "journal has True" in said
    assert "remembered {'tiny': 7.0}" in said
    assert "left over []" in said
    assert sum("the journal ends here" in line for line in said) == 2, "one for each start of the router"
    assert sum("there is no journal" in line for line in said) == 1
    assert sum("nothing can be remembered" in line for line in said) == 1


def save() -> None:
    """Profiles are saved, then the disk fills up."""
    from deployments.profiles import ProfileError, load_profiles, save_profiles
    from tests.deployments.test_profiles import profiles

    disk = Path(sys.argv[1])
    save_profiles(disk, profiles())
    fill(disk)
    try:
        save_profiles(disk, profiles("other"))
    except ProfileError as error:
        print(error)
    print(load_profiles(disk).applications)


def test_profiles_that_cannot_be_written_leave_those_of_before(tmp_path: Path) -> None:
    said = on_a_small_disk("save", tmp_path / "disk")
    assert "profiles cannot be written: " in said
    assert "No space left on device" in said
    assert "('digits',)" in said
