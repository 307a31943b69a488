"""The engine's /openapi.json and /docs say what it takes."""

import httpx

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.vectors import EmbeddingRequest


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


async def test_the_page_shows_each_path_and_loads_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    document = (await http.get("/openapi.json")).json()
    for path in document["paths"]:
        assert f"POST {path}" in answer.text
    assert "encoding_format" in answer.text
    assert "://" not in answer.text
    assert "<script" not in answer.text
