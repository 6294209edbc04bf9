"""Errors as OpenAI writes them: `{"error": {message, type, param, code}}`, codes as text. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nalar.config import UserError

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """What a request is answered with instead."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        other = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, other)
        code = self.code or kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def of_user_error(error: UserError, code: str | None = None) -> ApiError:
    """A setting that the model cannot follow."""
    param = error.at.removeprefix("sampling.").removeprefix("request.")
    hint = f" ({error.hint})" if error.hint else ""
    return bad_request(f"{param}: got {error.got}; wanted {error.want}{hint}", param, code)


def of_validation(error: ValidationError) -> ApiError:
    """The first field that is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    return bad_request(f"{param or 'body'}: {first['msg']}", param)
