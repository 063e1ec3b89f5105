"""Who may ask what, and how often: bearer tokens from a file that holds only their digests.

    - name: inspection            # shows in logs and metrics
      sha256: 9f86d081884c7d65... # of the token: `pliant token` makes both
      applications: [parts]       # default: all
      rate_rps: 50                # HTTP or gRPC requests; default: no limit
      burst: 100                  # at once; default: one second's worth
      admin: false                # may change the policy

The file is read again when it changes; while it cannot be read, what it said last holds.
"""

import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from deployments.config import ConfigError, parse, read_yaml
from deployments.protocol import Forbidden, RateExceeded, Unauthorised

LOOK_EVERY_S = 2.0  # for a changed file
REMEMBERED = 4096  # headers whose holder is known
TOKEN_BYTES = 32
SCHEME = "bearer "
NOBODY = ""  # in what is counted, whoever has no token that is known

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a token, and what it opens."""

    name: str
    sha256: str
    applications: tuple[str, ...] | None = None
    rate_rps: float | None = None
    burst: float | None = None
    admin: bool = False

    def may_ask(self, application: str) -> bool:
        """Whether the token opens this application."""
        return self.applications is None or application in self.applications


class Bucket:
    """Lets through `rate_rps` on average and `burst` at once."""

    def __init__(self, rate_rps: float, burst: float, now: float) -> None:
        self._rate_rps, self._burst = rate_rps, burst
        self._left, self._at = burst, now

    def take(self, now: float) -> float:
        """0 where one more may pass; else the seconds until one may."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate_rps)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self._rate_rps
        self._left -= 1.0
        return 0.0


class Access:
    """Admits requests by their `Authorization` header; without a file, all of them.

    `share` is the part of each rate that this router lets through: several routers have one each.
    """

    def __init__(self, path: str | None, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.guarded = path is not None
        self._path, self._share, self._clock = Path(path or os.devnull), share, clock
        self.counted: dict[tuple[str, str], int] = {}  # inference requests by the token's name and what came of them
        self._holders: Mapping[str, Holder] = {}  # by digest
        self._buckets: dict[str, Bucket] = {}
        self._known: dict[str, Holder] = {}  # by header
        self._seen: tuple[int, int] | None = None
        self._looked = clock()
        if self.guarded:
            self._seen = self._stamp()
            self._take(read_tokens(self._path))

    def admit(self, authorization: str | None, application: str | None = None, admin: bool = False) -> str:
        """The name of who asks; "" where nothing is guarded.

        Raises:
            Unauthorised, Forbidden, RateExceeded: it may not.
        """
        if not self.guarded:
            return ""
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._look(now)
        try:
            holder = self._known.get(authorization or "") or self._holder(authorization)
        except Unauthorised:
            if application is not None:
                self._count(NOBODY, "unknown")
            raise
        if application is not None and not holder.may_ask(application):
            self._count(holder.name, "forbidden")
            raise Forbidden(f"this token does not open application '{application}'")
        if admin and not holder.admin:
            raise Forbidden("this token does not open what administrators do")
        if application is not None and holder.rate_rps is not None:
            wait_s = self._bucket(holder, now).take(now)
            if wait_s > 0:
                self._count(holder.name, "rate")
                raise RateExceeded(f"more than the {holder.rate_rps:g} requests/s that this token allows", wait_s)
        if application is not None:
            self._count(holder.name, "admitted")
        return holder.name

    def _count(self, name: str, outcome: str) -> None:
        key = name, outcome
        self.counted[key] = self.counted.get(key, 0) + 1

    def _holder(self, authorization: str | None) -> Holder:
        given = authorization or ""
        if given[: len(SCHEME)].lower() != SCHEME:
            raise Unauthorised("no token: send the header `Authorization: Bearer TOKEN`")
        digest = digest_of(given[len(SCHEME) :].strip())
        found = next((h for known, h in self._holders.items() if hmac.compare_digest(known, digest)), None)
        if found is None:
            raise Unauthorised("the token is not known here")
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[given] = found
        return found

    def _bucket(self, holder: Holder, now: float) -> Bucket:
        assert holder.rate_rps is not None
        bucket = self._buckets.get(holder.sha256)
        if bucket is None:
            rate_rps = holder.rate_rps * self._share
            burst = holder.rate_rps if holder.burst is None else holder.burst
            bucket = self._buckets[holder.sha256] = Bucket(rate_rps, max(1.0, burst * self._share), now)
        return bucket

    def _look(self, now: float) -> None:
        self._looked = now
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._take(read_tokens(self._path))
                self._seen = stamp
                logger.info("router: %d tokens read from %s", len(self._holders), self._path)
        except (ConfigError, OSError) as error:
            logger.warning("router: the tokens cannot be read, so those from before hold: %s", error)

    def _stamp(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size

    def _take(self, holders: Mapping[str, Holder]) -> None:
        self._holders = holders
        self._known.clear()
        self._buckets.clear()


def digest_of(token: str) -> str:
    """What a file of tokens holds of one."""
    return sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A token that nobody guesses."""
    return f"plt_{secrets.token_urlsafe(TOKEN_BYTES)}"


def read_tokens(path: Path) -> dict[str, Holder]:
    """Who has tokens, by digest; ConfigError where the file is missing or wrong."""
    data = read_yaml(path)
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{path}: expected a list of tokens, each with a name and a sha256 (`pliant token` adds one)")
    found: dict[str, Holder] = {}
    for number, entry in enumerate(data):
        where = f"{path}: token {number + 1}"
        holder = parse(Holder, entry, where)
        if len(holder.sha256) != 64 or set(holder.sha256) - set("0123456789abcdef"):
            raise ConfigError(f"{where} ('{holder.name}'): sha256 is no digest: 64 hexadecimal digits in lower case")
        if holder.sha256 in found:
            raise ConfigError(f"{where} ('{holder.name}'): the same token as '{found[holder.sha256].name}'")
        for key in ("rate_rps", "burst"):
            value = getattr(holder, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{where} ('{holder.name}'): {key} is {value:g}; it must be positive")
        found[holder.sha256] = holder
    return found
