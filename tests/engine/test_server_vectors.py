"""/v1/embeddings, /v1/score and /v1/rerank in front of an engine process that a test tells what to say."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from headwater_engine.core.messages import FinishReason, Output, Outputs
from headwater_engine.server.texts import rooms
from tests.engine.fake_engine import FakeEngine
from tests.engine.front import CHAT, TEXT, post, serving, until
from tests.engine.tiny_pooled import make_encoder, pooled_by

CLS, SEP, RIVER, STONE, VOCABULARY = 2, 3, 6, 10, 18
"""Of `word_tokenizer`."""


@asynccontextmanager
async def pooling(engine: FakeEngine, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine, **changes) as http:
        await engine.be_ready(vocab_size=2 * VOCABULARY)
        await until(http, "/ready", 200)
        yield http


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pooled")
    return {
        "vectors": str(pooled_by(make_encoder("bert", folder / "vectors"), "mean_tokens")),
        "as they are": str(pooled_by(make_encoder("bert", folder / "plain"), "mean_tokens", normalize=False)),
        "matryoshka": str(make_encoder("bert", folder / "matryoshka", matryoshka_dimensions=[2, 3])),
        "scores": str(make_encoder("bert", folder / "scores", "AutoModelForSequenceClassification", num_labels=1)),
        "logits": str(
            make_encoder(
                "bert",
                folder / "logits",
                "AutoModelForSequenceClassification",
                num_labels=1,
                sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
            )
        ),
    }


async def test_texts_become_vectors_of_length_one_in_their_order(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["vectors"]) as http:
        answer = post(http, "/v1/embeddings", {"input": ["river", "stone river"]})
        first, second = await engine.hear_embed(), await engine.hear_embed()
        assert (first.prompt, second.prompt) == ([CLS, RIVER, SEP], [CLS, STONE, RIVER, SEP])
        await engine.give(second, 0, 2, cached_tokens=2)
        await engine.give(first, 3, 4)
        body = (await answer).json()
        assert body["object"] == "list"
        assert [(each["object"], each["index"]) for each in body["data"]] == [("embedding", 0), ("embedding", 1)]
        np.testing.assert_allclose([each["embedding"] for each in body["data"]], [[0.6, 0.8], [0, 1]], rtol=1e-6)
        assert body["model"] == "vectors"
        assert body["usage"] == {
            "prompt_tokens": 7,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        metrics = (await http.get("/metrics")).text
        assert 'headwater_engine_vectors_total{kind="embedding"} 2.0' in metrics
        assert 'headwater_engine_requests_total{finish_reason="stop"} 2.0' in metrics


async def test_input_is_a_text_token_ids_or_a_list_of_either(engine: FakeEngine, folders: dict[str, str]) -> None:
    cases: list[tuple[Any, list[list[int]]]] = [
        ("river", [[CLS, RIVER, SEP]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["river", "stone"], [[CLS, RIVER, SEP], [CLS, STONE, SEP]]),
    ]
    async with pooling(engine, model=folders["vectors"]) as http:
        for given, prompts in cases:
            answer = post(http, "/v1/embeddings", {"input": given})
            questions = [await engine.hear_embed() for _ in prompts]
            assert [question.prompt for question in questions] == prompts
            for question in questions:
                await engine.give(question, 1)
            assert len((await answer).json()["data"]) == len(prompts)


@pytest.mark.parametrize(
    ("folder", "options", "expected"),
    [
        ("vectors", {"dimensions": 2}, [0.6, 0.8]),
        ("vectors", {"normalize": False}, [3, 4, 12]),
        ("as they are", {}, [3, 4, 12]),
        ("as they are", {"dimensions": 2, "normalize": True}, [0.6, 0.8]),
        ("matryoshka", {"dimensions": 2}, [0.6, 0.8]),
    ],
)
async def test_a_vector_is_cut_and_then_made_as_long_as_the_folder_or_the_request_says(
    engine: FakeEngine, folders: dict[str, str], folder: str, options: dict[str, Any], expected: list[float]
) -> None:
    async with pooling(engine, model=folders[folder]) as http:
        for encoding in ("float", "base64"):
            asked = {"input": "river", "encoding_format": encoding, **options}
            answer = post(http, "/v1/embeddings", asked)
            await engine.give(await engine.hear_embed(), 3, 4, 12)
            (found,) = (await answer).json()["data"]
            numbers = found["embedding"]
            if encoding == "base64":
                data = base64.b64decode(numbers)
                numbers = struct.unpack(f"<{len(data) // 4}f", data)
            np.testing.assert_allclose(numbers, expected, rtol=1e-6)


async def test_openais_client_reads_them(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["vectors"]) as http:
        client = openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none")
        answer = asyncio.ensure_future(client.embeddings.create(model="vectors", input=["river"]))
        await engine.give(await engine.hear_embed(), 3, 4)
        np.testing.assert_allclose((await answer).data[0].embedding, [0.6, 0.8], rtol=1e-6)
        await client.close()


async def test_pairs_are_scored_by_the_head_and_the_second_text_is_told_apart(
    engine: FakeEngine, folders: dict[str, str]
) -> None:
    async with pooling(engine, model=folders["scores"]) as http:
        answer = post(http, "/v1/score", {"text_1": "river", "text_2": ["stone", "river"]})
        questions = [await engine.hear_embed() for _ in range(2)]
        assert questions[0].prompt == [CLS, RIVER, SEP, VOCABULARY + STONE, VOCABULARY + SEP]
        await engine.give(questions[0], 0.0)
        await engine.give(questions[1], -800.0)
        body = (await answer).json()
        assert [(each["object"], each["index"], each["score"]) for each in body["data"]] == [
            ("score", 0, 0.5),
            ("score", 1, 0.0),
        ]
        assert body["usage"]["total_tokens"] == 10
        assert 'headwater_engine_vectors_total{kind="score"} 2.0' in (await http.get("/metrics")).text


async def test_a_folder_whose_scores_are_as_they_are_has_no_sigmoid(
    engine: FakeEngine, folders: dict[str, str]
) -> None:
    async with pooling(engine, model=folders["logits"]) as http:
        answer = post(http, "/score", {"text_1": "river", "text_2": "stone"})
        await engine.give(await engine.hear_embed(), -7.5)
        assert (await answer).json()["data"][0]["score"] == -7.5


async def test_without_a_head_a_score_is_the_cosine_and_each_text_is_computed_once(
    engine: FakeEngine, folders: dict[str, str]
) -> None:
    async with pooling(engine, model=folders["as they are"]) as http:
        answer = post(http, "/v1/score", {"text_1": ["river", "river"], "text_2": ["stone", "river"]})
        river, stone = await engine.hear_embed(), await engine.hear_embed()
        await engine.give(river, 2, 0)
        await engine.give(stone, 3, 4)
        assert [each["score"] for each in (await answer).json()["data"]] == pytest.approx([0.6, 1])


async def test_documents_are_ranked_the_most_relevant_first(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["logits"]) as http:
        asked = {"query": "river", "documents": ["stone", {"text": "water"}, "who"], "top_n": 2}
        answer = post(http, "/v1/rerank", asked)
        for score in (1, 3, 2):
            await engine.give(await engine.hear_embed(), score)
        results = (await answer).json()["results"]
        assert results == [
            {"index": 1, "relevance_score": 3.0, "document": {"text": "water"}},
            {"index": 2, "relevance_score": 2.0, "document": {"text": "who"}},
        ]
        answer = post(http, "/rerank", {**asked, "top_n": 0, "return_documents": False})
        for score in (1, 3, 2):
            await engine.give(await engine.hear_embed(), score)
        assert [set(each) for each in (await answer).json()["results"]] == [{"index", "relevance_score"}] * 3


async def test_texts_are_cut_so_that_special_tokens_keep_their_places(
    engine: FakeEngine, folders: dict[str, str]
) -> None:
    async with pooling(engine, model=folders["scores"]) as http:
        pair = {"text_1": "river river", "text_2": "stone " * 9}
        for side, second in (("right", [STONE] * 2), ("left", [STONE] * 2)):
            answer = post(http, "/v1/score", {**pair, "truncate_prompt_tokens": 7, "truncation_side": side})
            question = await engine.hear_embed()
            behind = [VOCABULARY + token for token in [*second, SEP]]
            assert question.prompt == [CLS, RIVER, RIVER, SEP, *behind]
            await engine.give(question, 0.0)
            assert (await answer).status_code == 200
        answer = post(http, "/v1/score", {**pair, "text_2": "stone " * 999, "truncate_prompt_tokens": -1})
        question = await engine.hear_embed()
        assert len(question.prompt) == 64  # the context
        await engine.give(question, 0.0)
        assert (await answer).status_code == 200


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [([9], 4, [4]), ([2, 3], 9, [9, 9]), ([2, 9], 6, [2, 4]), ([9, 2], 6, [4, 2]), ([9, 8], 7, [4, 3])],
)
def test_the_longer_text_of_a_pair_loses_first(lengths: list[int], most: int, expected: list[int]) -> None:
    assert rooms(lengths, most) == expected


REFUSED: dict[str, list[tuple[str, dict[str, Any], str | None]]] = {
    "vectors": [
        ("/v1/embeddings", {"input": "river " * 63}, "input"),
        ("/v1/embeddings", {"input": "x" * 5000}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [[VOCABULARY]]}, "input"),
        ("/v1/embeddings", {"input": ["river"] * 1025}, "input"),
        ("/v1/embeddings", {"input": "", "add_special_tokens": False}, "input"),
        ("/v1/embeddings", {"input": "river", "encoding_format": "bytes"}, "encoding_format"),
        ("/v1/embeddings", {"input": "river", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "river", "priority": 1}, "priority"),
        ("/v1/embeddings", {"input": "river", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"messages": [], "input": "river"}, "messages"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": [3]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": list(map(str, range(1025)))}, "documents"),
        ("/v1/chat/completions", CHAT | {"model": "vectors"}, None),
        ("/v1/completions", TEXT | {"model": "vectors"}, None),
    ],
    "matryoshka": [("/v1/embeddings", {"input": "river", "dimensions": 4}, "dimensions")],
    "scores": [("/v1/embeddings", {"input": "river"}, None)],
}
"""By folder: a path, what is asked there, and the field that is to blame."""


@pytest.mark.parametrize("folder", REFUSED)
async def test_what_cannot_be_is_refused_before_the_engine_hears_of_it(
    engine: FakeEngine, folders: dict[str, str], folder: str
) -> None:
    async with pooling(engine, model=folders[folder]) as http:
        for path, asked, param in REFUSED[folder]:
            answer = await http.post(path, json=asked)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["param"] == param, error
            if param is None:
                assert error["code"] == "not_done_here"


async def test_a_chat_model_says_which_engine_makes_vectors(http: httpx.AsyncClient) -> None:
    for path, asked in (
        ("/v1/embeddings", {"input": "Hi"}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ):
        answer = await http.post(path, json=asked)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "not_done_here"
        assert "--runner pooling" in answer.json()["error"]["message"]


async def test_more_dimensions_than_there_are_is_refused(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["vectors"]) as http:
        answer = post(http, "/v1/embeddings", {"input": "river", "dimensions": 3})
        await engine.give(await engine.hear_embed(), 3, 4)
        assert (await answer).status_code == 400
        assert (await answer).json()["error"]["param"] == "dimensions"


async def test_the_engine_hears_when_the_client_leaves(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["vectors"]) as http:
        answer = post(http, "/v1/embeddings", {"input": ["river", "stone"]})
        first, second = await engine.hear_embed(), await engine.hear_embed()
        await engine.give(first, 1)
        await until_counted(http, 'headwater_engine_requests_total{finish_reason="stop"} 1.0')
        answer.cancel()
        assert await engine.hear_abort() == [second.id]
        await until_counted(http, 'headwater_engine_requests_total{finish_reason="abort"} 1.0')


async def until_counted(http: httpx.AsyncClient, line: str) -> None:
    async with asyncio.timeout(120):
        while True:
            page = (await http.get("/metrics")).text
            if line in page:
                return
            await asyncio.sleep(0.01)


async def test_one_that_fails_fails_all_and_the_rest_is_aborted(engine: FakeEngine, folders: dict[str, str]) -> None:
    async with pooling(engine, model=folders["vectors"]) as http:
        answer = post(http, "/v1/embeddings", {"input": ["river", "stone"]})
        first, second = await engine.hear_embed(), await engine.hear_embed()
        await engine.say(Outputs([Output(id=first.id, finish_reason=FinishReason.ERROR, error="It broke.")]))
        assert await engine.hear_abort() == [second.id]
        assert (await answer).status_code == 500
        assert (await answer).json()["error"]["code"] == "engine_error"


@pytest.mark.timeout(600)
async def test_the_real_engine_gives_the_vectors_of_transformers(folders: dict[str, str], tmp_path: Path) -> None:
    """Through HTTP, both processes and the tokenizer; a thousand texts at once."""
    import torch
    import transformers

    from headwater_engine.server.serve import EngineServer
    from tests.engine.front import settings_of

    settings = settings_of(model=folders["vectors"], threads=1)
    server = asyncio.create_task(EngineServer(settings).run())
    texts = ["the river is long", "a stone in the water", "who runs", "what"]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folders["vectors"])
    model = transformers.AutoModel.from_pretrained(folders["vectors"], dtype=torch.float32).eval()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=120) as http:
        await until(http, "/ready", 200)
        body = (await http.post("/v1/embeddings", json={"input": texts * 250})).json()
        card = (await http.get("/v1/models")).json()["data"][0]
        server.cancel()
    assert card["max_model_len"] == 70
    found = [np.array(each["embedding"]) for each in body["data"]]
    for number, vector in enumerate(found):
        tokens = torch.tensor([tokenizer(texts[number % 4])["input_ids"]])
        if number < 4:
            with torch.inference_mode():
                expected = model(tokens).last_hidden_state[0].mean(0).numpy()
            assert vector @ expected / np.linalg.norm(expected) > 0.9999
        np.testing.assert_allclose(vector, found[number % 4], atol=1e-5)
