"""What the engine takes, as an OpenAPI document (`/openapi.json`), and a page that shows it (`/docs`).

The schemas are those by which bodies are read. The page is made here, whole: it loads nothing from anywhere.
"""

import json
from functools import cache
from html import escape
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from headwater import __version__
from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.request import RequestModel
from headwater.openai.tokenize import DetokenizeRequest, TokenizeRequest
from headwater.openai.vectors import EmbeddingRequest, RerankRequest, ScoreRequest

_BODIES: Final[dict[str, type[RequestModel]]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ANSWERS: Final = {"200": {"description": "The answer."}, "400": {"description": "What is wrong with which field."}}


class _Schemas(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 -- pydantic's own type
    """A default that is an object of ours is left out."""


@cache
def openapi() -> dict[str, Any]:
    """The document."""
    kinds = dict.fromkeys(_BODIES.values())
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    paths = {}
    for path, kind in _BODIES.items():
        body = {"required": True, "content": {"application/json": {"schema": names[kind, "validation"]}}}
        paths[path] = {"post": {"summary": path, "requestBody": body, "responses": _ANSWERS}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headwater engine", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }


@cache
def page() -> bytes:
    """The document to be read by people: a table of fields for each path."""
    document = openapi()
    schemas = document["components"]["schemas"]
    parts = ["<!doctype html><meta charset=utf-8><title>Headwater engine</title><h1>Headwater engine</h1>"]
    for path, kind in _BODIES.items():
        schema = schemas[kind.__name__]
        needed = schema.get("required", [])
        rows = "".join(
            f"<tr><td><code>{escape(name)}</code>{' (required)' if name in needed else ''}"
            f"<td><code>{escape(_shown(field))}</code>"
            for name, field in schema["properties"].items()
        )
        parts.append(f"<h2>POST {escape(path)}</h2><table>{rows}</table>")
    parts.append('<p><a href="/openapi.json">openapi.json</a>')
    return "".join(parts).encode()


def _shown(field: dict[str, Any]) -> str:
    """A field's schema in a line."""
    return json.dumps({name: value for name, value in field.items() if name != "title"}, ensure_ascii=False)
