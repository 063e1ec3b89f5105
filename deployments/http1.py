"""HTTP/1.1 messages as the listener has them: a request that is whole, and the bytes of an answer."""

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


class Head(NamedTuple):
    """The head of an HTTP request, as it was parsed."""

    method: str
    target: bytes  # path and query, as sent
    headers: Mapping[str, str]  # by lower-case name


class Message(NamedTuple):
    """One HTTP request."""

    method: str
    target: bytes
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool
    arrived: float  # on the monotonic clock


class _Date:
    """The header that says when an answer was written, made anew every second (RFC 9110, 6.6.1)."""

    def __init__(self) -> None:
        self._second, self._line = -1, b""

    def line(self) -> bytes:
        """The header's line."""
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


DATE = _Date()


def response(
    status: int, headers: Mapping[str, str], body: bytes, keep_alive: bool = True, headers_only: bool = False
) -> bytes:
    """A whole HTTP response."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not keep_alive:
        lines += "connection: close\r\n"
    head = f"{lines}content-length: {len(body)}\r\n\r\n".encode("latin-1")
    return b"".join((LINES[status], DATE.line(), head, b"" if headers_only else body))
