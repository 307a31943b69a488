"""TensorRT-LLM's answers to the contract, written from its published code: it does not run without a GPU.

    python -m tests.backends.written

Shapes, fields and refusals are those of its `openai_protocol.py`, `postprocess_handlers.py` and `openai_server.py`, for
a model that thinks when it is told to, without a parser of tools. What is said is made up, a character a token. What
lies deeper, in the engine, is taken to be so: a prompt that is too long and a limit below 1 are errors, a limit above
the context is not.
"""

import asyncio
import datetime
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from headwater.backends.dialects.tensorrt_llm import KNOWN
from tests.backends.contract import ask_all, summary
from tests.backends.requests import CHAT, CONTEXT, MODEL
from tests.backends.table import Column, write
from tests.backends.tape import FIXTURES, Tape
from tests.router.gateway import gateway
from tests.router.upstream import Exchange, upstream

SOURCE: Final = (
    "written from github.com/NVIDIA/TensorRT-LLM, tensorrt_llm/serve: openai_protocol.py (0076e93), "
    "postprocess_handlers.py (01bf192), openai_server.py (0005772)"
)
_JSON: Final = {"json_schema": '{"city": "Bern", "big": true}', "json_object": '{"a": 1, "b": 2}'}
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

Told = tuple[int, str, str]
"""Status, content type and body."""


def answered(path: str, body: bytes) -> Told:
    try:
        asked = json.loads(body)
    except ValueError:
        return _invalid("JSON decode error")
    chat = path == CHAT
    if unknown := asked.keys() - KNOWN[path]:  # extra="forbid"
        return _invalid(f"Extra inputs are not permitted: {', '.join(sorted(unknown))}")
    if chat and "messages" not in asked:
        return _invalid("Field required: messages")
    if not isinstance(temperature := asked.get("temperature", 1.0), int | float):
        return _invalid("Input should be a valid number: temperature")
    most = asked.get("max_completion_tokens", asked.get("max_tokens", 16))
    prompts = ["".join(map(_said, asked["messages"]))] if chat else _prompts(asked["prompt"])
    if temperature < 0 or most < 1 or max(map(len, prompts)) > CONTEXT:
        return _error("require temperature >= 0, max_tokens > 0 and a prompt within max_seq_len")
    outputs = [_output(asked, prompt, index, most) for prompt in prompts for index in range(asked.get("n", 1))]
    usage = _usage(sum(map(len, prompts)), sum(len(text) for text, _, _ in outputs))
    made = _chat if chat else _completion
    if asked.get("stream"):
        events = [*made(asked, outputs, prompts, streamed=True), *_last(asked, chat, usage)]
        return 200, "text/event-stream; charset=utf-8", "".join(f"data: {each}\n\n" for each in events)
    (document,) = made(asked, outputs, prompts, streamed=False)
    return 200, "application/json", json.dumps(json.loads(document) | {"usage": usage})


def _invalid(message: str) -> Told:
    return 400, "application/json", json.dumps({"error": message})


def _error(message: str) -> Told:
    told = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
    return 400, "application/json", json.dumps(told)


def _prompts(prompt: Any) -> list[str]:
    each = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    return [one if isinstance(one, str) else "".join(map(chr, one)) for one in each]


def _said(message: dict[str, Any]) -> str:
    content = message["content"] or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return f"<{message['role']}>{message.get('reasoning_content', '')}{text}{message.get('tool_calls', '')}"


def _output(asked: dict[str, Any], prompt: str, index: int, most: int) -> tuple[str, str, str | None]:
    """Text, finish_reason and stop_reason."""
    if biases := asked.get("logit_bias"):
        [token] = map(int, biases)
        ends = token in asked.get("stop_token_ids", ())
        return ("", "stop", None) if ends else (chr(ord("!") + token) * most, "length", None)
    form = (asked.get("response_format") or {"type": "text"})["type"]
    if (text := _JSON.get(form)) is None:
        drawn = asked.get("seed", "") if asked.get("temperature") else ""
        digest = hashlib.sha256(f"{prompt}{drawn}{index}".encode()).digest() * (1 + most // 32)
        text = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[: min(most, CONTEXT - len(prompt))])
        reason = "length"
    else:
        text, reason = text[:most], "stop" if len(text) <= most else "length"
    stops = asked.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if (place := text.find(stop)) >= 0:
            kept = len(stop) if asked.get("include_stop_str_in_output") else 0
            return text[: place + kept], "stop", stop
    return text, reason, None


def _thought(asked: dict[str, Any], text: str) -> int:
    """Of so many letters."""
    thinks = (asked.get("chat_template_kwargs") or {}).get("thinking")
    return int(asked.get("thinking_token_budget", len(text))) if thinks else 0


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return counts | {"prompt_tokens_details": {"cached_tokens": 0}}


def _chat(asked: dict[str, Any], outputs: list[Any], prompts: list[str], *, streamed: bool) -> Iterator[str]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk" if streamed else "chat.completion", "created": 1}
    head |= {"model": asked["model"]}
    name = choice["function"]["name"] if isinstance(choice := asked.get("tool_choice"), dict) else None
    if streamed:
        for index in range(len(outputs)):
            first = {"index": index, "delta": {"role": "assistant"}}
            yield json.dumps(head | {"choices": [first]}) + " "
        for index, (text, reason, stop) in enumerate(outputs):
            for place, letter in enumerate(text):
                thinks = place < _thought(asked, text)
                delta = {"content": "" if thinks else letter, "reasoning_content": letter if thinks else ""}
                piece: dict[str, Any] = {"index": index, "delta": delta}
                if asked.get("logprobs"):
                    piece["logprobs"] = {"content": [_chat_logprob(letter, asked)]}
                if place + 1 == len(text):
                    piece |= {"finish_reason": reason} | ({"stop_reason": stop} if stop else {})
                yield json.dumps(head | {"choices": [piece]})
        return
    choices = []
    for index, (text, reason, stop) in enumerate(outputs):
        thought = _thought(asked, text)
        message = {"role": "assistant", "content": text[thought:], "reasoning_content": text[:thought]}
        message |= {"reasoning": None, "tool_calls": []}
        if name is not None:
            call = {"id": "chatcmpl-tool-1", "type": "function", "function": {"name": name, "arguments": text}}
            message |= {"content": "", "reasoning_content": None, "tool_calls": [call]}
        logprobs = {"content": [_chat_logprob(each, asked) for each in text]} if asked.get("logprobs") else None
        told = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason, "stop_reason": stop}
        choices.append(told | {"mm_embedding_handle": None, "disaggregated_params": None})
    yield json.dumps(head | {"choices": choices, "prompt_token_ids": None})


def _chat_logprob(letter: str, asked: dict[str, Any]) -> dict[str, Any]:
    one = {"token": letter, "logprob": -1.0, "bytes": list(letter.encode())}
    return one | {"top_logprobs": [one | {"top_logprobs": None}] if asked.get("top_logprobs") else None}


def _completion(asked: dict[str, Any], outputs: list[Any], prompts: list[str], *, streamed: bool) -> Iterator[str]:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": asked["model"]}
    choices, each_n = [], len(outputs) // len(prompts)
    for index, (text, reason, stop) in enumerate(outputs):
        echoed = prompts[index // each_n] if asked.get("echo") else ""
        for place, piece in enumerate(text if streamed else [text]):
            ended = not streamed or place + 1 == len(text)
            choices.append(
                {
                    "index": index,
                    "text": (echoed if place == 0 else "") + piece,
                    "token_ids": None,
                    "logprobs": _text_logprobs(piece) if asked.get("logprobs") else None,
                    "finish_reason": reason if ended else None,
                    "stop_reason": stop if ended else None,
                }
            )
    if streamed:
        yield from (json.dumps(head | {"choices": [choice], "usage": None}) for choice in choices)
    else:
        yield json.dumps(head | {"choices": choices, "prompt_token_ids": None})


def _text_logprobs(text: str) -> dict[str, Any]:
    tops = [{letter: -1.0} for letter in text]
    return {
        "text_offset": list(range(len(text))), "token_logprobs": [-1.0] * len(text), "tokens": list(text),
        "top_logprobs": tops,
    }  # fmt: skip


def _last(asked: dict[str, Any], chat: bool, usage: dict[str, Any]) -> Iterator[str]:
    if (asked.get("stream_options") or {}).get("include_usage"):
        kind = "chat.completion.chunk" if chat else "text_completion"
        yield json.dumps(
            {"id": "1", "object": kind, "created": 1, "model": asked["model"], "choices": [], "usage": usage}
        )
    yield "[DONE]"


async def main() -> None:
    today = datetime.date.today().isoformat()
    tape = Tape("tensorrt-llm", "0076e93", today, SOURCE)

    async def answer(exchange: Exchange) -> None:
        path = exchange.line.split(b" ")[1].decode()
        status, kind, body = answered(path, exchange.body)
        tape.record(path, exchange.body, status, kind, body.encode())
        await exchange.whole(body.encode(), status, b"content-type: %b\r\n" % kind.encode())

    async with upstream(MODEL) as engine, gateway(engine, backend=tape.backend) as router:
        engine.answer = answer
        seen = await ask_all(router)
    for name, each in seen.items():
        if each.verdict != "done":
            print(f"  {name}: {each.verdict}: {each.what[:160]}", flush=True)
    tape.write(FIXTURES / f"{tape.backend}.jsonl")
    write([Column(tape.backend, tape.version, today, summary(seen), SOURCE)])


if __name__ == "__main__":
    asyncio.run(main())
