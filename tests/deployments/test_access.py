"""Who is let in, what a token opens, and what becomes of a file that changes."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.tokens import add_token
from deployments.access import LOOK_EVERY_S, Access, Bucket, digest_of, new_token, read_tokens
from deployments.config import ConfigError
from deployments.protocol import Forbidden, RateExceeded, Unauthorised


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_without_a_file_everybody_may_do_everything() -> None:
    access = Access(None)
    assert not access.guarded
    assert access.admit(None, "digits", admin=True) == ""


def test_a_token_opens_what_its_entry_says(path: Path, clock: Clock) -> None:
    some = add_token(path, {"name": "some", "applications": ("digits",)})
    admin = add_token(path, {"name": "admin", "admin": True})
    access = Access(str(path), clock=clock)
    assert access.admit(bearer(some), "digits") == "some"
    assert access.admit(f"bEARER  {some} ", "digits") == "some"
    assert access.admit(bearer(some)) == "some"
    with pytest.raises(Forbidden, match="'parts'"):
        access.admit(bearer(some), "parts")
    with pytest.raises(Forbidden, match="administrators"):
        access.admit(bearer(some), admin=True)
    assert access.admit(bearer(admin), "parts", admin=True) == "admin"


@pytest.mark.parametrize(
    ("header", "says"), [(None, "no token"), ("", "no token"), ("Basic eA==", "no token"), ("Bearer x", "not known")]
)
def test_others_are_told_what_to_send(path: Path, header: str | None, says: str) -> None:
    add_token(path, {"name": "some"})
    with pytest.raises(Unauthorised, match=says) as caught:
        Access(str(path)).admit(header, "digits")
    assert caught.value.status == 401
    assert caught.value.headers["www-authenticate"].startswith("Bearer")


def test_a_rate_is_kept_on_average_and_says_when_to_come_back(path: Path, clock: Clock) -> None:
    token = bearer(add_token(path, {"name": "slow", "rate_rps": 10.0, "burst": 4.0}))
    access = Access(str(path), clock=clock)
    for _ in range(4):
        access.admit(token, "digits")
    with pytest.raises(RateExceeded, match="10 requests/s") as caught:
        access.admit(token, "digits")
    assert caught.value.status == 429
    assert caught.value.retry_after_s == pytest.approx(0.1)
    access.admit(token)  # what is no inference does not count
    clock.now += 0.1001
    access.admit(token, "digits")
    with pytest.raises(RateExceeded):
        access.admit(token, "digits")


def test_requests_are_counted_by_names_that_the_file_gives_and_no_others(path: Path, clock: Clock) -> None:
    token = bearer(add_token(path, {"name": "slow", "applications": ("digits",), "rate_rps": 1.0, "burst": 2.0}))
    access = Access(str(path), clock=clock)
    asked = [(token, "digits")] * 3 + [(token, f"made up {i}") for i in range(9)] + [(None, "digits")]
    asked += [(f"Bearer {i}", "digits") for i in range(9)]
    for header, application in asked:
        with suppress(Forbidden, RateExceeded, Unauthorised):
            access.admit(header, application)
    access.admit(token)  # no inference
    assert access.counted == {
        ("slow", "admitted"): 2,
        ("slow", "rate"): 1,
        ("slow", "forbidden"): 9,
        ("", "unknown"): 10,
    }
    assert not Access(None).counted


def test_each_of_several_routers_lets_its_share_through(path: Path, clock: Clock) -> None:
    token = bearer(add_token(path, {"name": "slow", "rate_rps": 100.0}))
    access = Access(str(path), 0.5, clock)
    for _ in range(50):
        access.admit(token, "digits")
    with pytest.raises(RateExceeded):
        access.admit(token, "digits")


@given(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=200), st.floats(0.5, 50.0), st.floats(1.0, 20.0))
def test_no_more_passes_than_rate_and_burst_allow(gaps: list[float], rate_rps: float, burst: float) -> None:
    now, passed = 0.0, 0
    bucket = Bucket(rate_rps, burst, now)
    for gap in gaps:
        now += gap
        wait_s = bucket.take(now)
        passed += wait_s == 0.0
        assert wait_s <= 1.0 / rate_rps + 1e-9
    assert passed <= burst + now * rate_rps + 1e-6


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(path: Path, clock: Clock) -> None:
    first = add_token(path, {"name": "first"})
    access = Access(str(path), clock=clock)
    second = add_token(path, {"name": "second"})
    with pytest.raises(Unauthorised):
        access.admit(bearer(second))
    clock.now += LOOK_EVERY_S
    assert access.admit(bearer(second)) == "second"
    good = path.read_text()
    path.write_text("{")
    clock.now += LOOK_EVERY_S
    assert access.admit(bearer(first)) == "first"
    path.write_text(good[good.index("- name: second") :])
    clock.now += LOOK_EVERY_S
    with pytest.raises(Unauthorised):
        access.admit(bearer(first))
    assert access.admit(bearer(second)) == "second"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a list of tokens"),
        ("a: 1", "expected a list of tokens"),
        ("- name: a", "'sha256' is missing"),
        ("- {name: a, sha256: plt_secret}", "sha256 is no digest"),
        (f"- {{name: a, sha256: {digest_of('x')}, rate: 3}}", "unknown key 'rate'"),
        (f"- {{name: a, sha256: {digest_of('x')}, rate_rps: 0}}", "rate_rps is 0"),
        (f"- {{name: a, sha256: {digest_of('x')}}}\n- {{name: b, sha256: {digest_of('x')}}}", "the same token as 'a'"),
        ("[", "not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_says_where(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_tokens(path)


def test_files_hold_no_token_and_are_their_owners_own(path: Path) -> None:
    token = add_token(path, {"name": "some", "applications": (), "rate_rps": None, "burst": None, "admin": False})
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert len({new_token() for _ in range(100)}) == 100
    with pytest.raises(ConfigError, match="'some' already"):
        add_token(path, {"name": "some"})
