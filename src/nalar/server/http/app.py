"""The application: every endpoint, around one service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from nalar.server import pages
from nalar.server.config import LOOPBACK, ServerConfig
from nalar.server.engine.link import Engine, Link
from nalar.server.http import chat, completions, health, messages, responses, tokens
from nalar.server.http.failures import handle_failures
from nalar.server.http.guard import Guard
from nalar.server.http.openapi import gather_schemas
from nalar.server.http.service import Service, service_of
from nalar.server.http.trace import Trace


def create_app(config: ServerConfig, engine: Engine | None = None) -> FastAPI:
    """Ready to be served, or called by a test. engine: None: one in a process of its own, started with the app."""
    link = engine or Link(config.worker)
    service = Service.of(config, link)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if isinstance(link, Link):
            link.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="nalar serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for part in (chat, completions, responses, messages, tokens, health):
        app.include_router(part.router)
    app.include_router(
        pages.router(authorize=_may_see, authorize_runs=_may_see_runs, runs=config.runs)
    )
    handle_failures(app)
    gather_schemas(app)
    if not config.has_keys:
        only_local = config.host in LOOPBACK
        app.add_middleware(Guard, only_local=only_local, allowed_origins=config.allowed_origins)
    app.add_middleware(Trace)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app


def _may_see_runs(request: Request) -> None:
    service_of(request).require_operator(request)


def _may_see(request: Request) -> None:
    """What the pages have done for them: whoever has a key, where keys are asked for."""
    service = service_of(request)
    if not service.is_admin(request):
        service.authenticated(request)
