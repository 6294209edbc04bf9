"""Refuses what a web page elsewhere makes a browser send to a server that asks for no keys.

Such a server takes whoever reaches it for its user, and a page of anybody reaches it through its reader's browser: by a
form or a fetch (its `Origin` tells), or under a name of its own that it has pointed at this machine (`Host` tells).
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from nalar.server.http.failures import respond
from nalar.server.wire.errors import ApiError


class Guard:
    """Around the application. only_local: whether it is reached at this machine's own names alone. allowed_origins: of
    pages elsewhere that may ask."""

    def __init__(
        self, app: ASGIApp, *, only_local: bool, allowed_origins: Collection[str] = ()
    ) -> None:
        self._app, self._only_local, self._allowed = app, only_local, allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(Headers(scope=scope))):
            reply = await respond(Request(scope), error)
            await reply(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._only_local and host and not is_local(host):
            message = "This server without keys is asked at 127.0.0.1 or localhost alone."
            return ApiError(403, message, code="foreign_host")
        if origin in self._allowed:
            return None
        is_foreign = headers.get("sec-fetch-site") == "cross-site"
        if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or (
            is_foreign and headers.get("sec-fetch-mode") != "navigate"
        ):
            message = "This server without keys answers no pages of other sites."
            return ApiError(403, message, code="foreign_origin")
        return None


def is_local(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
