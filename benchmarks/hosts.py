"""Several hosts on one machine, for what only happens between them: each has its own network, files and processes.

A host is a set of Linux namespaces: only `lo` and a cable to the switch of `benchmarks/wires.py`, which nothing else
is plugged into; /etc, /home, /srv, /tmp, /run and /dev/shm of its own, in memory; process numbers of its own, so that
`ray stop` finds that host's processes and no others. An SSH server is its first process: when it ends, so does
everything on the host, and nothing is left behind. It takes root.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from benchmarks.wires import inside

Result = TypeVar("Result")

ACCOUNT = "pliant"
NEEDED = {"ip": "iproute2", "nsenter": "util-linux", "rsync": "rsync", "setpriv": "util-linux", "ssh": "openssh-client"}
NEEDED |= {"ssh-keygen": "openssh-client", "sshd": "openssh-server", "unshare": "util-linux"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
UNSHARE += ["--uts", "--ipc", "--kill-child"]
STARTED_S = 20.0
ID = 1000

START = f"""
set -e
hostname $NAME
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/etc /mnt/python /mnt/base
cp -a /etc/. /mnt/etc
mount --bind "$PYTHON" /mnt/python
mount --bind "$BASE" /mnt/base
for place in /home /root /srv /tmp /run /dev/shm; do mount -t tmpfs -o mode=755 tmpfs $place; done
chmod 1777 /tmp /dev/shm
mkdir -p "$PYTHON" "$BASE" /run/sshd /home/{ACCOUNT}/.ssh
mount --bind /mnt/python "$PYTHON"
mount --bind /mnt/base "$BASE"
mount --bind /mnt/etc /etc
rm -f /etc/hosts /etc/hostname /etc/nologin
echo "127.0.0.1 localhost" > /etc/hosts
echo "$HOSTS" >> /etc/hosts
sed -i '/^{ACCOUNT}:/d;/^[^:]*:[^:]*:{ID}:/d' /etc/passwd
sed -i '/^{ACCOUNT}:/d;/^[^:]*:[^:]*:{ID}:/d' /etc/shadow /etc/group
echo '{ACCOUNT}:x:{ID}:{ID}::/home/{ACCOUNT}:/bin/bash' >> /etc/passwd
echo '{ACCOUNT}:*:19000::::::' >> /etc/shadow
echo '{ACCOUNT}:x:{ID}:' >> /etc/group
cp /etc/skel/.bashrc /etc/skel/.profile /home/{ACCOUNT}/ || true
echo "$PUBLIC" > /home/{ACCOUNT}/.ssh/authorized_keys
echo "$PRIVATE" > /home/{ACCOUNT}/.ssh/{ACCOUNT}
chmod 600 /home/{ACCOUNT}/.ssh/*
chown -R {ID}:{ID} /home/{ACCOUNT}
ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
ip link set lo up
read -r plugged
ip link set wire mtu 1500 up
ip address add $ADDRESS/24 dev wire
exec $SSHD -D -e -f /dev/null -h /run/sshd/key -o UsePAM=no -o StrictModes=no -o PasswordAuthentication=no
"""


class HostError(RuntimeError):
    """A command on a host failed; the message has what it said."""


def missing() -> str:
    """What keeps this machine from having hosts; empty where nothing does."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    for command, package in NEEDED.items():
        if _find(command) is None:
            return f"{command} is not installed (apt-get install {package})"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    tried = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, env={"PATH": PATH}
    )
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


def _find(command: str) -> str | None:
    return shutil.which(command, path=PATH)


@dataclass(frozen=True, slots=True)
class Host:
    """One host, while its network stands."""

    name: str
    address: str
    pid: int  # of its first process, as this machine counts

    def run(
        self, command: str, user: str = ACCOUNT, stdin: bytes = b"", timeout_s: float = 60.0, check: bool = True
    ) -> str:
        """What a bash command prints there, its errors among it; HostError where it fails and `check` is set."""
        home = "/root" if user == "root" else f"/home/{user}"
        enter = [str(_find("nsenter")), "-t", str(self.pid), "-n", "-m", "-p", "-u", "-i"]
        if user != "root":
            enter += [str(_find("setpriv")), f"--reuid={ID}", f"--regid={ID}", "--clear-groups"]
        environment = {"HOME": home, "USER": user, "LOGNAME": user, "PATH": PATH, "LANG": "C.UTF-8", "TERM": "dumb"}
        done = subprocess.run(
            [*enter, "bash", "-c", f"cd; {command}"],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            env=environment,
        )
        said = done.stdout.decode(errors="replace")
        if check and done.returncode:
            raise HostError(f"{self.name}: {command!r} ended with {done.returncode}:\n{said[-4000:]}")
        return said

    def visit(self, work: Callable[[], Result]) -> Result:
        """What `work` answers in this process, when whatever it connects to is reached from the host's network."""
        found: Future[Result] = Future()

        def go() -> None:
            try:
                with inside(self.pid):
                    found.set_result(work())
            except BaseException as error:
                found.set_exception(error)

        thread = threading.Thread(target=go, name=f"on {self.name}")  # a thread of its own: it changes its network
        thread.start()
        thread.join()
        return found.result()

    def write(self, path: str, content: str | bytes, user: str = ACCOUNT) -> None:
        """A file there, and the directories above it."""
        data = content.encode() if isinstance(content, str) else content
        at = shlex.quote(path)
        self.run(f"mkdir -p $(dirname {at}) && cat > {at}", user, data)

    def copy(self, source: Path, to: str, *only: str) -> None:
        """A directory, or just these parts of it, as `to` there."""
        packed = subprocess.run(
            ["tar", "-C", str(source), "--exclude=__pycache__", "-cf", "-", *(only or ".")],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        self.run(f"mkdir -p {to} && tar -C {to} -xf - --no-same-owner", stdin=packed)


class Network:
    """Hosts by name, each with an address, plugged into one switch; `with` it, or call `start` and `stop`.

    The account `pliant` may log in from each to each with the key ~/.ssh/pliant.
    """

    def __init__(self, addresses: Mapping[str, str], directory: Path) -> None:
        self.hosts: dict[str, Host] = {}
        self._addresses = addresses
        self._directory = directory  # of the logs
        self._unshares: list[subprocess.Popen[bytes]] = []
        self._switch: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Bring all hosts up; HostError where one does not come."""
        key = self._directory / "key"
        subprocess.run([str(_find("ssh-keygen")), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shared = {
            "PATH": PATH,
            "HOSTS": "\n".join(f"{address} {name}" for name, address in self._addresses.items()),
            "PYTHON": sys.prefix,  # which may lie in a place that the account may not see, or that is the host's own
            "BASE": sys.base_prefix,
            "PUBLIC": key.with_suffix(".pub").read_text().strip(),
            "PRIVATE": key.read_text().strip(),
            "SSHD": str(_find("sshd")),
        }
        for name, address in self._addresses.items():
            self._unshare(name, {**shared, "NAME": name, "ADDRESS": address})
        for (name, address), process in zip(self._addresses.items(), self._unshares, strict=True):
            self.hosts[name] = Host(name, address, self._first(name, process))
        self._plug()
        for process in self._unshares:
            assert process.stdin is not None
            process.stdin.write(b"plugged\n")
            process.stdin.close()
        for host in self.hosts.values():
            self._wait(host)

    def _unshare(self, name: str, environment: Mapping[str, str]) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            command = [*UNSHARE, "bash", "-c", START]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd="/")
        self._unshares.append(process)

    def _first(self, name: str, process: subprocess.Popen[bytes]) -> int:
        """The number of a host's first process, the child of what unshared its namespaces."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + STARTED_S
        while process.poll() is None and time.monotonic() < deadline:
            found = children.read_text().split()
            if found:
                return int(found[0])
            time.sleep(0.01)
        raise HostError(f"{name} did not start: {self._log(name)}")

    def _plug(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("wires.py"))]
        command += [f"{host.name}={host.pid}" for host in self.hosts.values()]
        self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._switch.stdout is not None
        if self._switch.stdout.readline() != "ready\n":
            raise HostError("the switch did not start")

    def _wait(self, host: Host) -> None:
        """Until it lets itself be logged in to."""
        deadline = time.monotonic() + STARTED_S
        login = f"ssh -i ~/.ssh/{ACCOUNT} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        while True:
            try:
                host.run(f"{login} -o ConnectTimeout=2 {ACCOUNT}@{host.address} true")
            except HostError as error:
                if time.monotonic() > deadline:
                    raise HostError(f"{host.name} takes no login: {error}\n{self._log(host.name)}") from error
                time.sleep(0.1)
            else:
                return

    def _log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text(errors="replace")[-2000:]

    def cut(self, name: str) -> None:
        """Cut a host's cable: not a frame gets through, and neither end is told."""
        self._tell(f"cut {name}")

    def mend(self, name: str) -> None:
        """Mend a host's cable."""
        self._tell(f"mend {name}")

    def delay(self, name: str, seconds: float) -> None:
        """Let every frame take so long through a host's cable, each way."""
        self._tell(f"delay {name} {seconds}")

    def _tell(self, command: str) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(f"{command}\n")
        self._switch.stdin.flush()
        if (answer := self._switch.stdout.readline().strip()) != "done":
            raise HostError(f"the switch: {answer or 'it has ended'}")

    def stop(self) -> None:
        """End every process of every host."""
        for host in self.hosts.values():
            with suppress(ProcessLookupError):
                os.kill(host.pid, signal.SIGKILL)  # a first process takes all of its host with it
        for process in self._unshares:
            if len(self.hosts) < len(self._unshares):
                process.kill()
            process.wait()
        self._unshares.clear()
        self.hosts.clear()
        if self._switch is not None:
            self._switch.communicate()
            self._switch = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
