"""The OpenAPI description, complete: problems, principals and how to authenticate."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from coop.doors import Principal

_PROBLEM: Final = {
    "title": "Problem",
    "description": "RFC 9457. Further members are facts of this code.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "description": "urn:coop:problem: and the code."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "Names the field and the fix."},
        "code": {"type": "string", "description": "Stable."},
    },
    "additionalProperties": True,
}
_OUTCOME: Final = {
    "title": "OperationOutcome",
    "description": "FHIR's own form of a refusal; details.coding holds our stable code.",
    "type": "object",
    "required": ["resourceType", "issue"],
    "properties": {
        "resourceType": {"const": "OperationOutcome"},
        "issue": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    },
}
_SCHEMES: Final = {
    "session": {
        "type": "http",
        "scheme": "bearer",
        "description": "A session of POST /v1/token (patients, staff, researchers).",
    },
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A researcher's API key, coop_sk_….",
    },
    "signedRequest": {
        "type": "apiKey",
        "in": "header",
        "name": "Coop-Signature",
        "description": (
            "With Coop-Did, Coop-Time and Coop-Nonce: an Ed25519 signature over method, path, "
            "body, time and nonce (coop.signed_request). Hospitals, and patients' own keys."
        ),
    },
}
_BY_PRINCIPAL: Final[dict[str, tuple[str, ...]]] = {
    Principal.PATIENT: ("session", "signedRequest"),
    Principal.STAFF: ("session",),
    Principal.RESEARCHER: ("apiKey", "session"),
    Principal.SITE: ("signedRequest",),
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of `app`, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(Problem=_PROBLEM, OperationOutcome=_OUTCOME)
        components["securitySchemes"] = _SCHEMES
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["security"] = _security(operation.get("x-principals", []))
        app.openapi_schema = schema
    return app.openapi_schema


def _security(principals: list[str]) -> list[dict[str, list[str]]]:
    names = {name for who in principals for name in _BY_PRINCIPAL.get(who, ())}
    public: list[dict[str, list[str]]] = [{}] if Principal.PUBLIC in principals else []
    return public + [{name: []} for name in sorted(names)]
