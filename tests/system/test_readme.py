"""README's examples, asked of what README starts: somebody who tries them shall get an answer, and a sensible one."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import httpx

from headwater_engine.models.source import resolve
from tests.system.conftest import Stack

README = (Path(__file__).parents[2] / "README.md").read_text()
WORDS = {"What is the capital of Japan?": "Tokyo", "What is a river?": "water"}
"""To each question a word that a sensible answer has."""


def requests() -> list[dict[str, Any]]:
    """What the examples send: curl's body, and the arguments of the OpenAI client."""
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*\})'", README)]
    (call,) = re.findall(r"completions\.create\((.*)\)", README)
    arguments = ast.parse(f"f({call})", mode="eval").body
    assert isinstance(arguments, ast.Call)
    return [*bodies, {str(each.arg): ast.literal_eval(each.value) for each in arguments.keywords}]


def test_the_examples_are_answered_sensibly_each_time(stack: Stack) -> None:
    asked = requests()
    assert [each["messages"][0]["content"] for each in asked] == list(WORDS)
    for request in asked:
        for _ in range(3):
            answer = httpx.post(f"{stack.router.url}/v1/chat/completions", json=request, timeout=120)
            (choice,) = answer.raise_for_status().json()["choices"]
            assert WORDS[request["messages"][0]["content"]] in choice["message"]["content"]
            assert choice["finish_reason"] == "stop"


def test_an_engine_that_is_started_by_itself_has_the_name_that_the_examples_send() -> None:
    (source,) = re.findall(r"headwater serve (\S+)", README)
    assert {request["model"] for request in requests()} <= set(resolve(source).names)
