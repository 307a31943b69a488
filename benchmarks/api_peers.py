"""The same 60 requests to our engine and to vLLM, on one checkpoint: what is the same, and what differs.

python benchmarks/api_peers.py http://127.0.0.1:8000 http://127.0.0.1:8001 --model NAME

Both serve the same folder under the same name, in float32, with a context of 2,048 tokens:
headwater serve FOLDER --dtype float32 --max-model-len 2048, and vllm serve FOLDER --dtype float32 --max-model-len 2048.
One that both take is made by tests/engine/tiny.py, `make_tiny("qwen3", FOLDER, max_position_embeddings=2048)`: vLLM's
attention on CPUs wants heads of 32 or more. Its weights are random, and so is how often an answer ends within a
character, where the two differ. Prints a table in Markdown; docs/openai-api.md says why things differ.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello there"}]
SAID = "The quick brown fox jumps over the lazy dog"


@dataclass(frozen=True, slots=True)
class Case:
    path: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """The fields beside those that all requests have."""
        shown = {field: value for field, value in self.body.items() if field not in _COMMON}
        return f"{self.path.removeprefix('/v1/')} {json.dumps(shown, ensure_ascii=False)}"


_COMMON = {"model", "temperature"}
_BOTH: list[dict[str, Any]] = [
    {"max_tokens": 8},
    {"max_tokens": 8, "stream": True},
    {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}},
    {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"max_tokens": 1},
    {"max_tokens": 0},
    {"max_tokens": 3000},
    {"max_tokens": "8"},
    {"max_tokens": 8.0},
    {"max_tokens": 8, "n": 2},
    {"max_tokens": 8, "min_tokens": 4},
    {"max_tokens": 4, "min_tokens": 8},
    {"max_tokens": 8, "ignore_eos": True},
    {"max_tokens": 8, "presence_penalty": 1.5, "frequency_penalty": -1},
    {"max_tokens": 8, "presence_penalty": 3},
    {"max_tokens": 8, "repetition_penalty": 1.3},
    {"max_tokens": 8, "logit_bias": {"65": 100}},
    {"max_tokens": 8, "logit_bias": {"99999": 1}},
    {"max_tokens": 8, "logit_bias": {"65": 101}},
    {"max_tokens": 8, "allowed_token_ids": [65, 66]},
    {"max_tokens": 8, "stop_token_ids": [65], "logit_bias": {"65": 100}},
    {"max_tokens": 8, "stop": ["AAA"], "logit_bias": {"32": 100}},
    {"max_tokens": 8, "stop": "AAA", "include_stop_str_in_output": True, "logit_bias": {"32": 100}},
    {"max_tokens": 8, "truncate_prompt_tokens": 4},
    {"max_tokens": 8, "seed": 7},
]
"""Of chats and of texts."""
_CHATS: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "max_tokens": 4},
    {"messages": [{"role": "system", "content": "Be brief."}, *HELLO], "max_tokens": 4},
    {"messages": [*HELLO, {"role": "assistant", "content": None}, *HELLO], "max_tokens": 4},
    {"max_tokens": 4, "logprobs": True, "top_logprobs": 2},
]
_TEXTS: list[dict[str, Any]] = [
    {"prompt": [72, 105], "max_tokens": 4},
    {"prompt": ["a", "b"], "max_tokens": 4},
    {"prompt": "", "max_tokens": 4},
    {"max_tokens": 4, "logprobs": 2},
    {"max_tokens": 4, "echo": True, "logprobs": 1},
]


def cases(model: str) -> Iterator[Case]:
    common = {"model": model, "temperature": 0}
    for path, base, own in ((CHAT, {"messages": HELLO}, _CHATS), (TEXT, {"prompt": SAID}, _TEXTS)):
        for fields in _BOTH + own:
            yield Case(path, common | base | fields)


def answer(http: httpx.Client, case: Case) -> dict[str, Any]:
    """What matters of an answer: status and, of a refusal, its code; else choices and usage, joined from a stream."""
    got = http.post(case.path, json=case.body)
    if got.status_code != 200:
        error = got.json().get("error", got.json())
        return {"status": got.status_code, "type": error.get("type"), "message": error.get("message")}
    if not case.body.get("stream"):
        return _shape(got.json())
    events = [line.removeprefix("data: ") for line in got.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    return {
        "status": 200,
        "text": text,
        "finish": [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
        "usages": sum(chunk.get("usage") is not None for chunk in chunks) > 1,
        "usage": _usage(next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)),
        "done": events[-1] == "[DONE]",
    }


def _shape(body: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {
            "text": choice["text"] if "text" in choice else choice["message"]["content"],
            "finish": choice["finish_reason"],
            "stop": choice.get("stop_reason"),
            "logprobs": _rounded(choice.get("logprobs")),
        }
        for choice in body["choices"]
    ]
    return {"status": 200, "choices": choices, "usage": _usage(body["usage"])}


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """How much was cached depends on the size of blocks, and on what was asked before."""
    return usage and {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items() if each is not None}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The paths at which two answers differ, with both values. A refusal's words are its own."""
    return [
        f"{path}: {json.dumps(left, ensure_ascii=False)} / {json.dumps(right, ensure_ascii=False)}"
        for path, left, right in _walk("", ours, theirs)
        if path != "message"
    ]


def _walk(path: str, left: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in left | right:
            yield from _walk(f"{path}.{name}".removeprefix("."), left.get(name), right.get(name))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right, strict=True)):
            yield from _walk(f"{path}[{index}]", *pair)
    elif left != right:
        yield path, left, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ours", help="URL of our engine")
    parser.add_argument("peer", help="URL of vLLM")
    parser.add_argument("--model", default="tiny", help="the name that both serve it under (default: tiny)")
    options = parser.parse_args()
    same = count = 0
    with (
        httpx.Client(base_url=options.ours, timeout=300) as ours,
        httpx.Client(base_url=options.peer, timeout=300) as peer,
    ):
        print("| request | ours / vLLM's |\n|---|---|")
        for case in cases(options.model):
            found = differences(answer(ours, case), answer(peer, case))
            count, same = count + 1, same + (not found)
            print(f"| `{case.name}` | {'; '.join(found) or 'the same'} |", flush=True)
    print(f"\n{same} of {count} are the same.")


if __name__ == "__main__":
    main()
