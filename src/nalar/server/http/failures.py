"""Whatever goes wrong, as an error of the API's form."""

import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from nalar.config import UserError
from nalar.server.engine.link import Unavailable
from nalar.server.engine.messages import EngineError
from nalar.server.http.replies import event
from nalar.server.ledger import LedgerError
from nalar.server.wire.errors import ApiError, of_user_error
from nalar.server.wire.messages import error_json

_ANTHROPIC = "/v1/messages"
"""Paths whose clients want errors of another form."""
_log = logging.getLogger(__name__)


def error_of(error: Exception) -> ApiError:
    """What a client is told. Bugs of ours are logged, and nothing of them leaves the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LedgerError):
        _log.error("ledger: %s", error)
        return ApiError(503, "The server cannot read its ledger.", code="ledger_unavailable")
    if isinstance(error, UserError):
        return of_user_error(error)
    if isinstance(error, Unavailable):
        headers = retry_headers(error)
        return ApiError(
            503, f"Ask again later: {error}.", code="engine_unavailable", headers=headers
        )
    if isinstance(error, EngineError):
        _log.error("engine: %s", error)
        # OpenAI's and Anthropic's clients ask again by themselves, and what killed an engine once may do so again.
        headers = {"x-should-retry": "false"}
        message = "The engine failed on this request."
        return ApiError(500, message, code="engine_error", headers=headers)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "The request's parameters are wrong.")
    _log.exception("a bug of the server", exc_info=error)
    return ApiError(500, "The server failed on this request.", code="internal_error")


def retry_headers(error: Unavailable) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(error.retry_after_s))}


def error_event(error: Exception) -> bytes:
    """The last event of a stream that breaks: its status has long been 200."""
    assert isinstance(error, ApiError)
    return event(error.body)


async def respond(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ClientDisconnect):
        return JSONResponse({}, status_code=499)
    known = error_of(error)
    is_anthropic = request.url.path.startswith(_ANTHROPIC)
    body = error_json(known) if is_anthropic else known.body
    return JSONResponse(body, status_code=known.status, headers=known.headers)


def handle_failures(app: FastAPI) -> None:
    kinds = (
        ApiError,
        UserError,
        Unavailable,
        EngineError,
        HTTPException,
        RequestValidationError,
        ClientDisconnect,
        Exception,
    )
    for kind in kinds:
        app.add_exception_handler(kind, respond)
