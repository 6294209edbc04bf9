"""Whether it works, what it serves, and what was used: `/health`, `/about`, `/metrics`, `/usage`, `/v1/models`."""

from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nalar.server.engine.link import Unavailable
from nalar.server.http.failures import retry_headers
from nalar.server.http.service import service_of
from nalar.server.ledger import GROUPS, By
from nalar.server.metrics import CONTENT_TYPE
from nalar.server.usage import Usage, usage
from nalar.server.wire.errors import ApiError, bad_request
from nalar.server.wire.models import model_card, model_list

router = APIRouter()


@router.head("/health", include_in_schema=False)  # as some load balancers ask
@router.get("/health")
async def health(request: Request) -> Response:
    """200 once requests are answered, 503 before and after, with the reason."""
    engine = service_of(request).engine
    try:
        engine.check()
    except Unavailable as error:
        document = {"status": engine.state, "reason": str(error)}
        return JSONResponse(document, status_code=503, headers=retry_headers(error))
    return JSONResponse({"status": "ok"})


@router.get("/about")
async def about(request: Request) -> dict[str, Any]:
    """What this server is for, and whom to tell where it did harm."""
    config = service_of(request).config
    return {
        "model": config.name,
        "weight_version": config.worker.weight_version,
        "intended_use": config.intended_use,
        "incident_contact": config.incident_contact,
    }


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus. These are everybody's figures: where there are keys, the admin's is wanted."""
    service = service_of(request)
    service.require_operator(request)
    stats = await service.engine.stats()
    limits = service.limits
    service.metrics.now(
        running=stats.running,
        waiting=stats.waiting + limits.queued,
        cache_usage_frac=stats.cache_usage_frac,
    )
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/usage")
async def used(
    request: Request, by: str = "key", since: str | None = None, until: str | None = None
) -> Usage:
    """Sums of the ledger, from a day or month of UTC to another, both with them. The admin key sees all keys, another
    its own."""
    service = service_of(request)
    key = None if service.is_admin(request) else service.authenticated(request)
    if key is None and not service.is_admin(request) and service.admin_sha256 is not None:
        service.require_admin(request)
    if service.writer is None:
        raise ApiError(404, "This server keeps no ledger.", code="no_ledger")
    groups = [name for name in by.replace(",", " ").split() if name]
    if not set(groups) <= set(GROUPS):
        raise bad_request(f"by: wanted any of {', '.join(GROUPS)}", "by")
    names, key_id = cast("list[By]", groups), None if key is None else key.id
    return await service.writer.read(lambda ledger: usage(ledger, names, since, until, key_id))


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    service = service_of(request)
    service.authenticated(request)
    return model_list(service.config, service.created, service.max_model_len)


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    service = service_of(request)
    service.authenticated(request)
    known = service.check_model(name)
    return model_card(service.config, known, service.created, service.max_model_len)
