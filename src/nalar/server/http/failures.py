"""Whatever goes wrong, as an error of the API's form."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from nalar.config import UserError
from nalar.server.engine.link import Unavailable
from nalar.server.engine.messages import EngineError
from nalar.server.http.replies import event
from nalar.server.wire.errors import ApiError, of_user_error
from nalar.server.wire.messages import error_json

LOADING_RETRY_S = 2
_ANTHROPIC = "/v1/messages"
"""Paths whose clients want errors of another form."""
_log = logging.getLogger(__name__)


def error_of(error: Exception) -> ApiError:
    """What a client is told. Bugs of ours are logged, and nothing of them leaves the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return of_user_error(error)
    if isinstance(error, Unavailable):
        headers = {"Retry-After": str(LOADING_RETRY_S)}
        return ApiError(
            503, f"Ask again soon: {error}.", code="engine_unavailable", headers=headers
        )
    if isinstance(error, EngineError):
        _log.error("engine: %s", error)
        return ApiError(500, "The engine failed on this request.", code="engine_error")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "The request's parameters are wrong.")
    _log.exception("a bug of the server", exc_info=error)
    return ApiError(500, "The server failed on this request.", code="internal_error")


def error_event(error: Exception) -> bytes:
    """The last event of a stream that breaks: its status has long been 200."""
    assert isinstance(error, ApiError)
    return event(error.body)


async def respond(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ClientDisconnect):
        return JSONResponse({}, status_code=499)
    known = error_of(error)
    is_anthropic = request.url.path.startswith(_ANTHROPIC)
    own_id = {"request_id": request.scope.get("request_id")}
    body = error_json(known) | own_id if is_anthropic else known.body
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
