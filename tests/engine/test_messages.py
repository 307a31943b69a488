"""What the API says in several ways reaches a template in the one that it wants."""

import pytest

from headwater_engine.server.messages import Message, Style, adapted

TEXT, PARTS = Style(), Style(parts=True, no_content=[])


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "user", "content": "a"}, "a"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "refusal": "No."}, "No."),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"role": "tool", "content": [], "tool_call_id": "1"}, ""),
    ],
)
def test_content_is_text_or_parts_as_the_template_wants(message: Message, content: str) -> None:
    (text,) = adapted([message], TEXT)
    assert text["content"] == content
    (parts,) = adapted([message], PARTS)
    assert "\n".join(part["text"] for part in parts["content"]) == content
    assert "refusal" not in text


def test_a_function_is_a_tool() -> None:
    called = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    assistant, tool = adapted([called, {"role": "function", "name": "f", "content": "2"}], TEXT)
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}
    assert tool == {"role": "tool", "name": "f", "tool_call_id": call["id"], "content": "2"}
    assert call["id"].isalnum() and len(call["id"]) == 9, "as Mistral's templates want it"


def test_a_result_has_the_name_of_what_was_called() -> None:
    calls = [{"id": name, "function": {"name": f"get_{name}"}} for name in ("x", "y")]
    results: list[Message] = [{"role": "tool", "tool_call_id": name, "content": ""} for name in ("y", "x", "z")]
    _, *tools = adapted([{"role": "assistant", "tool_calls": calls}, *results], TEXT)
    assert [tool.get("name") for tool in tools] == ["get_y", "get_x", None]


@pytest.mark.parametrize(
    ("given", "mapping", "text"),
    [
        ('{"a": 1}', {"a": 1}, '{"a": 1}'),
        ({"a": "é"}, {"a": "é"}, '{"a": "é"}'),
        ("", {}, ""),
        ("[1]", "[1]", "[1]"),
        ('{"a": ', '{"a": ', '{"a": '),
        ("[" * 100_000, "[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_are_a_mapping_or_text(given: object, mapping: object, text: str) -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": given}}]}
    for style, expected in ((Style(), mapping), (Style(text_arguments=True), text)):
        (adopted,) = adapted([message], style)
        assert adopted["tool_calls"][0] == {
            "type": "function",
            "id": "1",
            "function": {"name": "f", "arguments": expected},
        }


def test_reasoning_has_the_names_that_templates_know() -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        (message,) = adapted([{"role": "assistant", "content": "a", name: "why"}], TEXT)
        assert (message["reasoning_content"], message["thinking"]) == ("why", "why")


def test_an_empty_list_of_calls_is_none() -> None:
    (message,) = adapted([{"role": "assistant", "content": "a", "tool_calls": []}], TEXT)
    assert message == {"role": "assistant", "content": "a"}


def test_messages_of_the_request_stay_as_they_are() -> None:
    message: Message = {"role": "developer", "content": "a", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    adapted([message], Style(text_arguments=True))
    assert message == {"role": "developer", "content": "a", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
