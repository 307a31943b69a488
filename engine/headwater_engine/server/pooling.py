"""/v1/embeddings, /v1/score and /v1/rerank, by a model that makes vectors of texts, or a score of two."""

import asyncio
import base64
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from headwater.http.connection import ClientConnection
from headwater.http.replies import JSON
from headwater.http.request import Request
from headwater.openai.errors import BadRequestError
from headwater.openai.vectors import (
    Document,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    Ranked,
    Ranking,
    RerankRequest,
    Score,
    ScoreList,
    ScoreRequest,
    TextsRequest,
    TextsUsage,
)
from headwater_engine.core.messages import Embed
from headwater_engine.models.pooling import PoolingPlan
from headwater_engine.server.admission import Admission
from headwater_engine.server.asking import new_id, now
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.served_model import ServedModel
from headwater_engine.server.texts import Text, TextEncoder
from headwater_engine.server.vectors import Found, Vector, Vectors

Asked = TypeVar("Asked", bound=TextsRequest)

_encode = msgspec.json.Encoder().encode


class PoolingAPI:
    """Answers what is asked of such a model; `context`: tokens of a prompt at most. All raise APIError."""

    def __init__(self, engine: EngineClient, metrics: ServerMetrics, admission: Admission) -> None:
        self._engine = engine
        self._metrics = metrics
        self._admission = admission

    async def embeddings(self, model: ServedModel, context: int, request: Request, client: ClientConnection) -> None:
        plan, asked = _begun(EmbeddingRequest, model, request)
        if plan.scores:
            raise BadRequestError(
                "This model scores pairs of texts, and makes no vectors of them: ask /v1/score or /v1/rerank.",
                code="not_done_here",
            )
        _check_dimensions(asked, plan)
        encoder = TextEncoder(model, context, asked, asked.add_special_tokens)
        found = await self._found(encoder, asked.prompts, "input", new_id("embd"))
        self._metrics.vectors.labels("embedding").inc(len(found.vectors))
        answer = await asyncio.to_thread(_embeddings, asked, plan, asked.model or model.names[0], found)
        client.answer(200, JSON, answer)

    async def score(self, model: ServedModel, context: int, request: Request, client: ClientConnection) -> None:
        plan, asked = _begun(ScoreRequest, model, request)
        request_id, encoder = new_id("score"), TextEncoder(model, context, asked)
        scores, usage = await self._scores(plan, encoder, asked.pairs, "text_2", request_id)
        data = [Score(index=index, score=score) for index, score in enumerate(scores)]
        answer = ScoreList(id=request_id, created=now(), model=asked.model or model.names[0], data=data, usage=usage)
        client.answer(200, JSON, _encode(answer))

    async def rerank(self, model: ServedModel, context: int, request: Request, client: ClientConnection) -> None:
        plan, asked = _begun(RerankRequest, model, request)
        request_id, encoder = new_id("rerank"), TextEncoder(model, context, asked)
        pairs = [(asked.query, document) for document in asked.documents]
        scores, usage = await self._scores(plan, encoder, pairs, "documents", request_id)
        results = [
            Ranked(
                index=index,
                relevance_score=scores[index],
                document=Document(asked.documents[index]) if asked.return_documents else msgspec.UNSET,
            )
            for index in sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or None]
        ]
        answer = Ranking(id=request_id, model=asked.model or model.names[0], results=results, usage=usage)
        client.answer(200, JSON, _encode(answer))

    async def _scores(
        self, plan: PoolingPlan, encoder: TextEncoder, pairs: Sequence[tuple[str, str]], field: str, request_id: str
    ) -> tuple[list[float], TextsUsage]:
        """By the model's head; without one, the cosine of the two texts' vectors."""
        if plan.scores:
            found = await self._found(encoder, pairs, field, request_id)
            logits = [float(vector[0]) for vector in found.vectors]
            scores = [_sigmoid(logit) for logit in logits] if plan.sigmoid else logits
        else:
            texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            found = await self._found(encoder, texts, field, request_id)
            vectors = {text: _of_length_one(vector) for text, vector in zip(texts, found.vectors, strict=True)}
            scores = [float(vectors[first] @ vectors[second]) for first, second in pairs]
        self._metrics.vectors.labels("score").inc(len(scores))
        return scores, TextsUsage.of(found.tokens, found.cached)

    async def _found(self, encoder: TextEncoder, texts: Sequence[Text], field: str, request_id: str) -> Found:
        asked = encoder.request
        with self._admission.of(asked, prompts=len(texts), field=field):
            prompts = await asyncio.to_thread(lambda: list(encoder.prompts(texts, field)))
            with self._admission.holding_tokens(sum(map(len, prompts)), encoder.context, field):
                questions = [
                    Embed(
                        id=f"{request_id}-{number}",
                        prompt=prompt,
                        priority=asked.priority,
                        cache_salt=asked.cache_salt or "",
                    )
                    for number, prompt in enumerate(prompts)
                ]
                return await Vectors(self._engine, self._metrics, questions).found()


def _begun(kind: type[Asked], model: ServedModel, request: Request) -> tuple[PoolingPlan, Asked]:
    """How the model pools, and what is asked of it. Raises APIError, also where the model generates text."""
    if model.plan is None:
        raise BadRequestError(
            f"{model.names[0]} generates text here. Vectors of it, and scores by these, come from an engine that was "
            "started with --runner pooling.",
            code="not_done_here",
        )
    asked = kind.parse(request.body)
    request.drop_body()
    model.check_name(asked.model)
    return model.plan, asked


def _check_dimensions(asked: EmbeddingRequest, plan: PoolingPlan) -> None:
    if plan.dimensions and asked.dimensions is not None and asked.dimensions not in plan.dimensions:
        allowed = ", ".join(map(str, plan.dimensions))
        raise BadRequestError(
            f"`dimensions`: this model was trained for {allowed}, found {asked.dimensions}.", param="dimensions"
        )


def _embeddings(asked: EmbeddingRequest, plan: PoolingPlan, name: str, found: Found) -> bytes:
    """The answer. Blocking: a thousand vectors are megabytes of digits."""
    size = len(found.vectors[0])
    if (asked.dimensions or size) > size:
        raise BadRequestError(
            f"`dimensions`: this model's vectors have {size}, found {asked.dimensions}.", param="dimensions"
        )
    normalized = plan.normalized if asked.normalize is None else asked.normalize
    data = []
    for index, vector in enumerate(found.vectors):
        cut = vector[: asked.dimensions]
        cut = _of_length_one(cut) if normalized else cut
        data.append(Embedding(index=index, embedding=_written(cut, asked.encoding_format)))
    return _encode(EmbeddingList(data=data, model=name, usage=TextsUsage.of(found.tokens, found.cached)))


def _written(vector: Vector, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _of_length_one(vector: Vector) -> Vector:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
