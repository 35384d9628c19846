"""The description of the API: what FastAPI knows of the requests, and from `wire_objects` what it cannot know."""

from collections.abc import Callable, Mapping
from functools import wraps
from importlib.metadata import version
from inspect import iscoroutinefunction
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.wire_objects import CREATES, MEDIA_TYPES, OBJECTS, OTHER_CODES, STREAMS, UNCHANGED, ErrorReply

REF = "#/components/schemas/{model}"

SUMMARY = """Fine-tuning over OpenAI's wire, with the risk of every step measured, acted on and recorded.

Paths under `/v1` want the header `Authorization: Bearer KEY`. Fields may be added to any object; clients ignore those
that they do not know. A refusal has the form of `ErrorReply` and says in `param` which field it is about."""


class DescribedApi(FastAPI):
    """A FastAPI whose description is whole. Operations have the names of their functions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            version=version("tether"), generate_unique_id_function=lambda route: route.name, **options
        )

    def include_router(self, router: APIRouter, *args: Any, **options: Any) -> None:
        """Include a router whose endpoints render their own replies, in the thread that they run in.

        FastAPI would hand a reply to another thread while the request still has its transaction open: with every
        thread waiting for that transaction, nothing would go on until the database gave up.
        """
        for route in router.routes:
            if isinstance(route, APIRoute) and not iscoroutinefunction(route.endpoint):
                route.endpoint = _render_there(route.endpoint, route.status_code or 200)
                route.response_model = None
        super().include_router(router, *args, **options)

    def openapi(self) -> dict[str, Any]:
        """Return the description, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi())
        return self.openapi_schema


def _render_there(endpoint: Callable[..., Any], status_code: int) -> Callable[..., Any]:
    if hasattr(endpoint, "__wrapped__"):
        return endpoint

    @wraps(endpoint)
    def render(*args: Any, **values: Any) -> Response:
        reply = endpoint(*args, **values)
        return reply if isinstance(reply, Response) else JSONResponse(reply, status_code=status_code)

    return render


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    schema["info"]["description"] = SUMMARY
    components = schema.setdefault("components", {})
    streamed = [model for messages in STREAMS.values() for model in messages.values()]
    models: list[type[BaseModel]] = [ErrorReply, *dict.fromkeys([*OBJECTS.values(), *streamed])]
    declared, definitions = models_json_schema(
        [(model, "serialization") for model in models], ref_template=REF
    )
    components.setdefault("schemas", {}).update(definitions["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    for operation in operations:
        _complete_operation(operation, declared)
    for operation in operations:
        _link(operation, operations)
    return schema


def _link(operation: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    """Say which operations take the id of what this one creates."""
    made = CREATES.get(operation["operationId"])
    if made is None:
        return
    links = {
        each["operationId"]: {
            "operationId": each["operationId"],
            "parameters": {made: "$response.body#/id"},
        }
        for each in operations
        if made in [parameter["name"] for parameter in each["parameters"]]
    }
    good = next(reply for code, reply in operation["responses"].items() if code.startswith("2"))
    good["links"] = links


def _schema_of(media_type: str) -> dict[str, Any]:
    if media_type.endswith("+json"):
        return {"type": "object"}
    is_text = media_type.startswith("text/") or media_type == "image/svg+xml"
    return {"type": "string"} if is_text else {"type": "string", "format": "binary"}


def _complete_operation(operation: dict[str, Any], declared: dict[Any, Any]) -> None:
    operation.setdefault("parameters", [])
    operation.setdefault("security", [])
    name = operation["operationId"]
    content: dict[str, Any] = {}
    if name in OBJECTS:
        content["application/json"] = {"schema": declared[OBJECTS[name], "serialization"]}
    for media_type in MEDIA_TYPES.get(name, ()):
        content[media_type] = {"schema": _schema_of(media_type)}
    if name in STREAMS:
        content["text/event-stream"]["itemSchema"] = _describe_messages(STREAMS[name], declared)
    replies = {code: reply for code, reply in operation["responses"].items() if code != "422"}
    for code, reply in replies.items():
        if code.startswith("2") and content:
            replies[code] = {**reply, "content": content}
            if name in STREAMS:
                kinds = (f"`{kind}` ({model.__name__})" for kind, model in STREAMS[name].items())
                replies[code]["description"] = f"Messages, with their data as JSON: {', '.join(kinds)}."
    refusal = {"application/json": {"schema": declared[ErrorReply, "serialization"]}}
    for code in OTHER_CODES.get(name, ()):
        replies[code] = {"description": "Not yet.", "content": content}
    if name in UNCHANGED:
        headers = {"ETag": {"description": "Names this reply as it is.", "schema": {"type": "string"}}}
        replies["200"]["headers"] = headers
        replies["304"] = {"description": "As If-None-Match names it; there is no body.", "headers": headers}
    replies["4XX"] = {"description": "The request cannot be done as it is.", "content": refusal}
    replies["5XX"] = {"description": "The service cannot do it now, or at all.", "content": refusal}
    operation["responses"] = replies


def _describe_messages(messages: Mapping[str, type[BaseModel]], declared: dict[Any, Any]) -> dict[str, Any]:
    """Return the schema of one server-sent event, in the form that OpenAPI 3.2 has and FastAPI writes."""
    kinds = [
        {
            "properties": {
                "event": {"const": kind},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": declared[model, "serialization"],
                },
            }
        }
        for kind, model in messages.items()
    ]
    lines = {"event": {"type": "string"}, "data": {"type": "string"}, "id": {"type": "string"}}
    return {"type": "object", "properties": lines, "required": ["event", "data"], "oneOf": kinds}
