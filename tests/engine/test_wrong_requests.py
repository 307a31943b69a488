"""Wrong requests, and what is answered: a status, the field to blame, and a sentence that says what is right."""

from typing import Any, Final

import httpx

from tests.engine.front import CHAT, TEXT

CHATS: Final = "/v1/chat/completions"
TEXTS: Final = "/v1/completions"
HI: Final = {"role": "user", "content": "Hi"}


def chat(*messages: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages)}


PICTURE: Final = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
WRONG: Final[list[tuple[str, Any, int, str | None, str]]] = [
    # path, body, status, field, answer
    ("/chat/completions", CHAT, 404, None, "nothing at /chat/completions; did you mean /v1/chat/completions?"),
    ("/v1/chat/completion", CHAT, 404, None, "nothing at /v1/chat/completion; did you mean /v1/chat/completions?"),
    ("/v1/moderation", {}, 404, None, "There is nothing at /v1/moderation."),
    ("/v1/moderations", {}, 404, None, "This engine has no moderations."),
    ("/v1/audio/speech", {}, 404, None, "This engine has no audio at that path."),
    ("/v1/images/generations", {}, 404, None, "This engine has no images."),
    ("/v1/files/file-1/content", {}, 404, None, "This engine has no files."),
    ("/v1/batches", {}, 404, None, "This engine has no batches."),
    ("/v1/threads/t/runs", {}, 404, None, "This engine has no threads; /v1/responses keeps conversations."),
    ("/v1/load_lora_adapter", {}, 404, None, "This engine loads no LoRA adapters: they come later."),
    ("/v1/unload_lora_adapter", {}, 404, None, "This engine loads no LoRA adapters: they come later."),
    ("/api/chat", {}, 404, None, "not that of /api/chat; did you mean /v1/chat/completions?"),
    ("/v1/embeddings", {}, 400, None, "an engine that was started with --runner pooling."),
    ("/health", {}, 405, None, "POST is not allowed for /health."),
    (CHATS, b"", 400, None, "The body is empty; it must be a JSON object."),
    (CHATS, b"{", 400, None, "The body is not valid JSON: "),
    (CHATS, [], 400, None, "The body: must be an object, found []."),
    (CHATS, CHAT | {"model": "gpt-4"}, 404, "model", "`gpt-4` does not exist. Served here: tiny."),
    (CHATS, {"model": "tiny"}, 400, "messages", "`messages`: is required."),
    (CHATS, chat(), 400, "messages", "`messages`: must have at least 1 element, found []."),
    (CHATS, chat("Hi"), 400, "messages[0]", '`messages[0]`: must be an object, found "Hi".'),
    (CHATS, chat({"content": "x"}), 400, "messages[0].role", "is required."),
    (CHATS, chat({"role": "robot", "content": "x"}), 400, "messages[0].role", "'tool' or 'function', found \"robot\"."),
    (CHATS, chat(HI, {"role": "user"}), 400, "messages[1].content", "is required in a message of role user."),
    (
        CHATS,
        chat({"role": "user", "content": 5}),
        400,
        "messages[0].content",
        "a string or a list of text parts, found 5.",
    ),
    (CHATS, chat(PICTURE), 400, "messages[0].content", "'image_url'; only text is read, no image, sound or file."),
    (CHATS, chat(HI | {"content": "x" * 9999}), 400, "messages", "This model's maximum context length is 64 tokens"),
    (CHATS, CHAT | {"temperature": "hot"}, 400, "temperature", 'must be a number, found "hot".'),
    (CHATS, CHAT | {"temperature": 9}, 400, "temperature", "must be less than or equal to 2, found 9."),
    (CHATS, CHAT | {"max_tokens": 10**9}, 400, "max_tokens", "at most 43 are left for the answer."),
    (CHATS, CHAT | {"stop": ["a"] * 17}, 400, "stop", "must have at most 16 elements, found "),
    (CHATS, CHAT | {"stream": "yes"}, 400, "stream", 'must be true or false, found "yes".'),
    (CHATS, CHAT | {"top_logprobs": 3}, 400, "top_logprobs", "is only allowed where `logprobs` is true."),
    (CHATS, CHAT | {"tools": "x"}, 400, "tools", 'must be a list of functions, found "x".'),
    (CHATS, CHAT | {"logit_bias": {"a": 1}}, 400, "logit_bias", 'must be token ids as strings, found "a".'),
    (CHATS, CHAT | {"priority": 3}, 400, "priority", "unless it runs with --scheduling-policy priority."),
    (CHATS, CHAT | {"chat_template_kwargs": 3}, 400, "chat_template_kwargs", "must be an object, found 3."),
    (CHATS, CHAT | {"response_format": {"type": "xml"}}, 400, "response_format.type", 'found "xml".'),
    (TEXTS, {"model": "tiny"}, 400, "prompt", "`prompt`: is required."),
    (TEXTS, TEXT | {"prompt": []}, 400, "prompt", "must not be an empty list."),
    (TEXTS, TEXT | {"prompt": [10**8]}, 400, "prompt", "holds the token id 100000000; the model's are 0 to 511."),
    (TEXTS, TEXT | {"suffix": "x"}, 400, "suffix", "is not supported: text is only continued, not inserted."),
    ("/tokenize", {"model": "tiny"}, 400, "prompt", "give either `prompt` or `messages`."),
]


async def test_a_wrong_request_is_told_what_would_be_right(http: httpx.AsyncClient) -> None:
    said = []
    for path, body, *_ in WRONG:
        answer = await http.post(path, content=body) if isinstance(body, bytes) else await http.post(path, json=body)
        error = answer.json()["error"]
        said.append((answer.status_code, error["param"], error["message"]))
    wrong = [
        (path, body, told)
        for (path, body, status, field, sentence), told in zip(WRONG, said, strict=True)
        if told[:2] != (status, field) or sentence not in told[2]
    ]
    assert not wrong
