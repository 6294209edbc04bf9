"""Fields of a body that nobody here knows: taken, and said in the log."""

import logging

from fastapi import Request

from nalar.server.wire.body import Wire

_log = logging.getLogger(__name__)
_MOST = 20


def note_unknown(request: Request, body: Wire) -> None:
    """Names alone: a value may be what somebody said."""
    names = [name[:64] for name in body.unknown[:_MOST]]
    if names:
        request_id = request.scope.get("request_id", "")
        _log.warning("fields that are not known: %s", ", ".join(names), extra={"id": request_id})
