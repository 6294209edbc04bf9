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
from nalar.server.ledger import LedgerError
from nalar.server.ledger_writer import RETRY_S
from nalar.server.wire.errors import ApiError, of_user_error
from nalar.server.wire.messages import error_json

_ANTHROPIC = "/v1/messages"
"""Paths whose clients want errors of another form."""
_log = logging.getLogger(__name__)


def error_of(error: Exception) -> ApiError:
    """What a client is told. Of bugs of ours nothing leaves the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LedgerError):  # a user's too, but of whoever started the server
        message = "The server's ledger cannot be used at the moment."
        headers = {"Retry-After": str(round(RETRY_S))}
        return ApiError(503, message, code="ledger_unavailable", headers=headers)
    if isinstance(error, UserError):
        return of_user_error(error)
    if isinstance(error, Unavailable):
        headers = retry_headers(error)
        return ApiError(
            503, f"Ask again later: {error}.", code="engine_unavailable", headers=headers
        )
    if isinstance(error, EngineError):
        # OpenAI's and Anthropic's clients ask again by themselves, and what killed an engine once may do so again.
        headers = {"x-should-retry": "false"}
        message = "The engine failed on this request."
        return ApiError(500, message, code="engine_error", headers=headers)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "The request's parameters are wrong.")
    return ApiError(500, "The server failed on this request.", code="internal_error")


def told(error: Exception, request: Request) -> ApiError:
    """What a client is told. What is no fault of his is logged, under the request's id."""
    known, extra = error_of(error), {"id": request.scope.get("request_id")}
    if isinstance(error, LedgerError | EngineError):
        _log.error("%s: %s", known.code, error, extra=extra)
    elif known.code == "internal_error":
        _log.error("a bug of the server", exc_info=error, extra=extra)
    return known


def retry_headers(error: Unavailable) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(error.retry_after_s))}


async def respond(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ClientDisconnect):
        return JSONResponse({}, status_code=499)
    known = told(error, request)
    is_anthropic = request.url.path.startswith(_ANTHROPIC)
    own_id = {"request_id": request.scope.get("request_id")}
    body = error_json(known) | own_id if is_anthropic else known.body
    return JSONResponse(body, status_code=known.status, headers=known.headers)


def handle_failures(app: FastAPI) -> None:
    """All but bugs, which `Trace` answers: behind it a reply would have no id."""
    kinds = (
        ApiError,
        UserError,
        Unavailable,
        EngineError,
        HTTPException,
        RequestValidationError,
        ClientDisconnect,
    )
    for kind in kinds:
        app.add_exception_handler(kind, respond)
