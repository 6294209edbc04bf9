"""Around every request: its id, and its line in the log."""

import logging
import re
import time
import uuid

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nalar.server.http.failures import respond

_log = logging.getLogger("nalar.server.requests")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Trace:
    """Gives every reply an `X-Request-Id`, the client's own where it sent one that can stand in a log, and logs method,
    path, status and time, and of a `Job` what its bill has too. Queries and bodies are not looked at.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), 0
        request_id = _given(scope) or f"req-{uuid.uuid4().hex}"
        scope["request_id"], scope["arrived_s"] = request_id, began_s

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                head = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": head}
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except Exception as error:  # a bug: all else has its answer by now
            reply = await respond(Request(scope), error)
            if status:
                raise
            await reply(scope, receive, stamped)
        finally:
            facts = {
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round((time.monotonic() - began_s) * 1000, 1),
            }
            if "key_id" in scope:
                facts["key"] = scope["key_id"]
            if (job := scope.get("job")) is not None:
                facts |= job.facts | {"status": max(status, job.status)}  # a stream begins with 200
            _log.info("request", extra=facts)


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            return text if _ID.fullmatch(text) else None
    return None
