"""What the OpenAPI document says of bodies: endpoints read them by hand, for errors of their own form."""

from typing import Any

from fastapi import FastAPI

from nalar.server.wire.body import Wire

_REF = "#/components/schemas/{model}"
_SCHEMAS = "x-schemas"


def json_body(model: type[Wire]) -> dict[str, Any]:
    """For a route's `openapi_extra`."""
    schema = model.model_json_schema(ref_template=_REF)
    parts = schema.pop("$defs", {}) | {model.__name__: schema}
    ref = {"$ref": _REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref}}},
        _SCHEMAS: parts,
    }


def gather_schemas(app: FastAPI) -> None:
    """Put what routes refer to where they refer to it."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path in document["paths"].values():
            for operation in path.values():
                schemas.update(operation.pop(_SCHEMAS, {}))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
