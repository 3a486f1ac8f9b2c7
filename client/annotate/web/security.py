"""What holds for every response and request: headers, body size, origin, rates. Pure ASGI, so that a closed page ends its stream.

No address is stored or logged; the limits keep a hash of it, in memory, for a minute.
"""

from __future__ import annotations

import hmac
import time
from collections import deque
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyhead.client.annotate.problems import Forbidden, TooLarge, TooMany
from polyhead.client.annotate.storage.database import sha256

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
MAX_BODY = 64 << 10
SAFE_METHODS = ("GET", "HEAD")


class Secure:
    """Adds the headers."""

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        self._headers = [*HEADERS, (b"strict-transport-security", b"max-age=31536000")] if is_https else list(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                own = [] if b"cache-control" in given else [(b"cache-control", b"no-store")]
                message["headers"] = [*message["headers"], *self._headers, *own]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def limited(receive: Receive, most: int) -> Receive:
    """The same messages; TooLarge as soon as a body has more than `most` bytes."""
    num_bytes = 0

    async def counted() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > most:
            raise TooLarge(f"more than {most} bytes")
        return message

    return counted


def check_origin(request: Request, *, is_https: bool) -> None:
    """An unsafe request comes from a page of this site: the browser itself says so."""
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None:
        if fetch_site != "same-origin":
            raise Forbidden(f"the request comes from another site: {fetch_site[:20]}", code="CSRF")
        return
    expected = f"{'https' if is_https else 'http'}://{request.headers.get('host', '')}"
    if request.headers.get("origin") != expected:
        raise Forbidden("the request does not say that it comes from this site", code="CSRF")


def check_csrf(presented: object, expected: str) -> None:
    """The token of a header or form against the session's own."""
    if not isinstance(presented, str) or not hmac.compare_digest(presented.encode(), expected.encode()):
        raise Forbidden("the CSRF token is missing, or another one", code="CSRF")


class Limits:
    """So many acts a minute for each key. Forgets a key that was quiet for a minute."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, bytes], deque[float]] = {}

    def count(self, what: str, who: str, per_minute: int) -> None:
        """Counts one act. TooMany, with the seconds to wait, if there were enough in the last minute."""
        now = time.monotonic()
        if len(self._times) > 10_000:
            self._times = {key: times for key, times in self._times.items() if times and now - times[-1] < 60.0}
        times = self._times.setdefault((what, sha256(who)), deque())
        while times and now - times[0] >= 60.0:
            times.popleft()
        if len(times) >= per_minute:
            raise TooMany(f"{what}: {per_minute} a minute", retry_after_s=round(60.0 - (now - times[0]), 1))
        times.append(now)


def address_of(scope: dict[str, Any], *, is_behind_proxy: bool) -> str:
    """Whose sign-in attempts are counted together. A proxy appends the address that it saw to what the caller claims."""
    forwarded = Headers(scope=scope).get("x-forwarded-for", "") if is_behind_proxy else ""
    client = scope.get("client")
    return forwarded.rpartition(",")[2].strip() or (client[0] if client else "")
