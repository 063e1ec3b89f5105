"""HTTP/1.1 from anybody: what is taken in is what an independent parser reads, however it is cut."""

import asyncio
import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.deployments.test_listener import BINARY, BODY, GET, LIMITS, infer, post
from tests.fuzz.wire import Recorder, hear, reference

LINES = (
    b"GET /v2 HTTP/1.1",
    b"POST /v2/models/animals/infer HTTP/1.1",
    b"HEAD /livez HTTP/1.0",
    b"GET http://x/v2 HTTP/1.1",
    b"GET /v2 HTTP/2.0",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT x:1 HTTP/1.1",
)
HEADERS = (
    b"Host: x",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length : 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding:\x0bchunked",
    b" folded: 5",
    b"\tchunked",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X: \xff",
    b"X: " + b"y" * 70_000,
)
ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"")
BODIES = (
    b"",
    b"12345",
    b"5\r\n12345\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"5;x=y\r\n12345\r\n0\r\nX: y\r\n\r\n",
    b"5\n12345\n0\n\n",
)
WHOLE = (GET, infer("whole"), post(BODY, BINARY), infer("close", connection="close"), GET * 20)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request from parts that parsers have disagreed on."""
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=5))
    lines = [draw(st.sampled_from(LINES)), *([b"Host: x"] if draw(st.booleans()) else []), *headers]
    ended = b"".join(line + draw(st.sampled_from(ENDS)) for line in lines)
    return ended + draw(st.sampled_from(ENDS)) + draw(st.sampled_from(BODIES))


streams = st.lists(requests() | st.sampled_from(WHOLE) | st.binary(max_size=40), min_size=1, max_size=5).map(b"".join)


LOOP = asyncio.new_event_loop()


def head(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /v2/models/animals/infer HTTP/1.1", *lines, b"", b""]) + body


@settings(max_examples=300, deadline=None)
@given(streams, st.lists(st.integers(0, 2000), max_size=4))
@example(head(b"Host: x", b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), [])
@example(head(b"Host: x", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), [])
@example(head(b"Content-Length: 0") + GET, [])
@example(head(b"Host: x", b"Host: y", b"Content-Length: 0") + GET, [])
@example(b"GET /v2\r\n\r\n" + GET, [])
@example(b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n" + GET, [])
@example(b"\r\n" + GET + b"\n\r" + GET, [])
@example(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", [])
@example(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET, [])
def test_http_is_read_as_another_parser_reads_it(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(bounds) if start < end]
    whole = hear(LOOP, Recorder(), [stream])
    cut = hear(LOOP, Recorder(), pieces)
    again = Recorder()
    repeated = [hear(LOOP, again, [stream]) for _ in range(2)][1]  # heads are known by then
    assert whole.taken == cut.taken == repeated.taken
    assert [said.status for said in whole.said if said.status < 400] == [s.status for s in cut.said if s.status < 400]
    assert whole.said == repeated.said
    expected = reference(stream)
    taken = whole.taken[:-1] if whole.taken and whole.taken[-1].method == "CONNECT" else whole.taken
    assert taken == expected[: len(taken)], stream
    assert taken is whole.taken or whole.closed, "of a CONNECT nobody knows where it ends"
    assert not {said.status for said in whole.said} & {500}
    assert all(said.closes for said in whole.said[len(whole.taken) :]), "what is refused unread ends the connection"
    assert max(whole.largest, cut.largest) <= LIMITS.max_body_mb * 1e6 + len(stream)
