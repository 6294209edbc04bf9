"""The pages: chat at `/`, training runs at `/runs`, what they are made of below `/page/`, and the data they ask for.

No page loads anything from elsewhere, and none runs a script or a style that is not a file of this server: the
Content-Security-Policy says so to the browser.
"""

import asyncio
import hashlib
import json
import mimetypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from nalar.config import UserError
from nalar.server import run_samples
from nalar.server import runs as run_folders
from nalar.server.markdown import to_html
from nalar.server.run_files import NoSuchRunError
from nalar.server.wire.errors import ApiError

FOLDER = Path(__file__).parent / "page"
MAX_BODY_BYTES = 1_000_000
"""Of a text to render."""
_READ_S = 60.0
"""What it gets to come in."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Only page/markdown.js may turn text into HTML, and only what this server has cleaned.
        "require-trusted-types-for 'script'",
        "trusted-types nalar-markdown",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}

Authorize = Callable[..., Any]
"""A FastAPI dependency that raises where a request may not see data."""


def router(
    *,
    authorize: Authorize | None = None,
    authorize_runs: Authorize | None = None,
    runs: Path | None = None,
) -> APIRouter:
    """All routes of the pages. authorize: asked before data is given, not before files of the page; None: everyone may.

    authorize_runs: asked before anything of a run is, for they are nobody's but whose server it is; None: as the other.
    runs: the folder whose runs are shown; None: the page says that there is none.
    """
    pages = APIRouter(include_in_schema=False)
    _add_files(pages)
    markdown, of_runs = _guarded(authorize), _guarded(authorize_runs or authorize)
    _add_markdown(markdown)
    _add_runs(of_runs, runs)
    pages.include_router(markdown)
    pages.include_router(of_runs)
    return pages


def _guarded(authorize: Authorize | None) -> APIRouter:
    return APIRouter(dependencies=[Depends(authorize)] if authorize else [])


class _File:
    """A file of the page, read once."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.tag = f'"{hashlib.sha256(self.data).hexdigest()[:20]}"'
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        self.media_type = f"{kind}; charset=utf-8"

    def respond(self, request: Request) -> Response:
        # No cache without asking: after an update the page's modules must fit each other.
        headers = {**HEADERS, "ETag": self.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.data, media_type=self.media_type, headers=headers)


def _add_files(pages: APIRouter) -> None:
    """What is served is a table made here, so no name in an address can reach any other file."""
    files = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.is_file()}
    addresses = {"/": "index.html", "/runs": "runs.html", "/favicon.ico": "icon.svg"}
    addresses |= {f"/page/{name}": name for name in files if not name.endswith(".html")}
    for address, name in addresses.items():
        pages.add_api_route(address, files[name].respond, methods=["GET", "HEAD"])


def _add_markdown(data: APIRouter) -> None:
    one_at_a_time = CapacityLimiter(1)  # it is work for a processor that also serves streams

    @data.post("/page/markdown")
    async def markdown(request: Request) -> Response:
        """{text} → {html}, as `server/markdown.py` makes it."""
        text = await _text_of(request)
        if isinstance(text, Response):
            return text
        html = await to_thread.run_sync(to_html, text, limiter=one_at_a_time)
        return _json({"html": html})


async def _text_of(request: Request) -> str | Response:
    """The field `text` of the body; a refusal where it has none."""
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return _refusal(413, f"the text is longer than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        return _refusal(408, f"the text is not here after {_READ_S:g} s")
    try:
        document = json.loads(body)
        text = document["text"]
        text.encode()  # a lone surrogate is no text
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return _refusal(400, "want a JSON object with a string `text`")
    return str(text)


def _add_runs(data: APIRouter, root: Path | None) -> None:
    reads = CapacityLimiter(2)

    async def answer(read: Callable[[], Any]) -> Response:
        try:
            return _json(await to_thread.run_sync(read, limiter=reads))
        except NoSuchRunError as error:
            return _refusal(404, str(error))
        except UserError as error:
            return _refusal(409, f"this run cannot be read: {error.got}")

    @data.get("/runs/all")
    async def listed() -> Response:
        return await answer(partial(run_folders.listed, root))

    @data.get("/runs/{name}/details")
    async def details(name: str, part: str = "") -> Response:
        return await answer(partial(run_folders.details, root, name, part))

    @data.get("/runs/{name}/metrics")
    async def metrics(
        name: str,
        part: str = "",
        since: Annotated[int, Query(ge=0, le=2**53)] = 0,
        keys: Annotated[str, Query(max_length=2000)] = "",
    ) -> Response:
        wanted = [key for key in keys.split(",") if key]
        return await answer(partial(run_folders.metrics, root, name, part, since, wanted))

    @data.get("/runs/{name}/samples")
    async def samples(name: str, before: str = "", after: str = "", part: str = "") -> Response:
        return await answer(partial(run_samples.samples, root, name, part, before, after))


def _json(document: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(document, status, {"Cache-Control": "no-store", **HEADERS})


def _refusal(status: int, message: str) -> JSONResponse:
    """In the form that every error of the server has."""
    return _json(ApiError(status, message).body, status)
