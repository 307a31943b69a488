"""The engine's /openapi.json and /docs say what it takes."""

import json
import re

import httpx

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.vectors import EmbeddingRequest
from headwater_engine.config import EngineSettings
from headwater_engine.server.app import EngineApp
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics


async def test_the_document_has_the_fields_that_bodies_are_read_by(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    for path, kind in (("/v1/chat/completions", ChatCompletionRequest), ("/v1/embeddings", EmbeddingRequest)):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{kind.__name__}"}
        assert schemas[kind.__name__]["properties"].keys() == kind.model_fields.keys()
    temperature = schemas["ChatCompletionRequest"]["properties"]["temperature"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in temperature["anyOf"]


async def test_the_document_has_all_paths_and_what_is_answered_there(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas.keys() > {
        "ChatCompletionRequest",
        "ChatCompletion",
        "Usage",
        "EmbeddingList",
        "Ranking",
        "ModelList",
    }
    refs = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert refs <= schemas.keys()
    answered = {path for path in document["paths"] if "{" not in path}
    own = set(EngineApp(EngineClient(EngineSettings(model="x")), ServerMetrics()).paths)
    assert answered == own - {"/docs", "/openapi.json"}
    for path, kind in (("/v1/chat/completions", "ChatCompletion"), ("/rerank", "Ranking")):
        told = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert told == {"$ref": f"#/components/schemas/{kind}"}
    assert document["paths"]["/v1/messages"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "required"
    ] == ["max_tokens", "messages"]
    assert document["paths"]["/v1/responses/{id}"].keys() == {"get", "delete"}


async def test_the_page_shows_each_path_and_loads_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    document = (await http.get("/openapi.json")).json()
    for path, ways in document["paths"].items():
        assert all(f"{way.upper()} {path}" in answer.text for way in ways)
    assert "encoding_format" in answer.text
    assert "://" not in answer.text
    assert "<script" not in answer.text
