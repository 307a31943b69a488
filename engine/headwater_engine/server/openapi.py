"""What the engine takes and answers, as an OpenAPI document (`/openapi.json`), and a page that shows it (`/docs`).

The schemas are those by which bodies are read and answers written. `/v1/responses` and `/v1/messages` are made chats,
so of theirs there stands what has to be there. The page is made here, whole: it loads nothing from anywhere.
"""

import json
from functools import cache
from html import escape
from typing import Any, Final

import msgspec
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from headwater import __version__
from headwater.http.exchanges import COUNT_TOKENS, MESSAGES, RESPONSES
from headwater.openai.chat import ChatCompletion, ChatCompletionRequest
from headwater.openai.completions import Completion, CompletionRequest
from headwater.openai.models import ModelCard, ModelList
from headwater.openai.request import RequestModel
from headwater.openai.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from headwater.openai.vectors import EmbeddingList, EmbeddingRequest, Ranking, RerankRequest, ScoreList, ScoreRequest

_BODIES: Final[dict[str, type[RequestModel]]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ALIASES: Final = {"/score": "/v1/score", "/rerank": "/v1/rerank", "/v2/rerank": "/v1/rerank"}
_TOLD: Final[dict[str, type[msgspec.Struct]]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": EmbeddingList,
    "/v1/score": ScoreList,
    "/v1/rerank": Ranking,
    "/v1/models": ModelList,
    "/v1/models/{name}": ModelCard,
    "/tokenize": TokenizeAnswer,
    "/detokenize": DetokenizeAnswer,
}
"""What is answered with 200."""
_CHATS: Final[dict[str, tuple[str, ...]]] = {
    RESPONSES: (),
    MESSAGES: ("max_tokens", "messages"),
    COUNT_TOKENS: ("messages",),
}
"""Bodies that are read as chats, and the fields that have to be there."""
_READ: Final = (
    "/v1/models", "/v1/models/{name}", "/v1/responses/{id}", "/v1/responses/{id}/input_items", "/tokenizer_info",
    "/health", "/ready", "/metrics", "/version",
)  # fmt: skip
_TEXT: Final = {"type": "string"}
_REF: Final = "#/components/schemas/"


class _Schemas(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 -- pydantic's own type
    """A default that is an object of ours is left out."""


@cache
def openapi() -> dict[str, Any]:
    """The document."""
    kinds = dict.fromkeys(_BODIES.values())
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds],
        ref_template=_REF + "{model}",
        schema_generator=_Schemas,
    )
    answers, told = msgspec.json.schema_components(list(_TOLD.values()), ref_template=_REF + "{name}")
    told_at = dict(zip(_TOLD, answers, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, kind in (_BODIES | {alias: _BODIES[path] for alias, path in _ALIASES.items()}).items():
        answer = told_at[_ALIASES.get(path, path)]
        paths[path] = {"post": _operation(path, answer, names[kind, "validation"])}
    for path, needed in _CHATS.items():
        body = {"type": "object", "properties": {name: {} for name in needed}, "required": list(needed)}
        paths[path] = {"post": _operation(path, {"type": "object"}, body)}
    for path in _READ:
        paths[path] = {"get": _operation(path, told_at.get(path))}
    paths["/v1/responses/{id}"]["delete"] = _operation("/v1/responses/{id}", {"type": "object"})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headwater engine", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {}) | told},
    }


def _operation(path: str, answer: dict[str, Any] | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Of a path. `answer` and `body`: their schemas."""
    fine: dict[str, Any] = {"description": "The answer."} | ({"content": _json(answer)} if answer else {})
    told: dict[str, Any] = {"summary": path, "responses": {"200": fine}}
    if body is not None:
        told["responses"]["400"] = {"description": "What is wrong with which field."}
        told["requestBody"] = {"required": True, "content": _json(body)}
    named = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if named:
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in named]
    return told


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


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
    others = [f"{way.upper()} {path}" for path, ways in document["paths"].items() for way in ways]
    shown = {f"POST {path}" for path in _BODIES}
    parts += [f"<h2>{escape(each)}</h2>" for each in others if each not in shown]
    parts.append('<p><a href="/openapi.json">openapi.json</a>')
    return "".join(parts).encode()


def _shown(field: dict[str, Any]) -> str:
    """A field's schema in a line."""
    return json.dumps({name: value for name, value in field.items() if name != "title"}, ensure_ascii=False)
