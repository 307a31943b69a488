"""The router's token ids are those of the engine: the model's tokenizer behind its chat template."""

import json
from array import array
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headwater_router.index.tokenizer import ModelTokenizer

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "user",
    "system",
    "assistant",
    "stay",
    "short",
    "hello",
    "there",
    ":",
    "tools",
    "thinking",
]
TEMPLATE = """{{ bos_token }}{%- for message in messages %}
{%- if message.role not in ['user', 'system', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}
{{ message.role }} : {% generation %}{{ message.content }}{% endgeneration %} </s>
{% endfor %}
{%- if tools %}tools{% for tool in tools %} {{ tool | tojson }}{% endfor %}{% endif %}
{%- if enable_thinking is defined and enable_thinking %}thinking{% endif %}
{%- if add_generation_prompt %}assistant :{% endif %}"""

HELLO = [{"role": "system", "content": "stay short"}, {"role": "user", "content": "hello there"}]


def write(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def reference(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "hello", "description": "thére"}}]},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
def test_chats_have_the_ids_that_transformers_gives_them(tmp_path: Path, options: dict[str, object]) -> None:
    ids = ModelTokenizer.from_folder(write(tmp_path)).chat({"messages": HELLO, **options})
    kwargs = dict(options)
    kwargs.update(kwargs.pop("chat_template_kwargs", {}))
    kwargs.setdefault("add_generation_prompt", True)
    assert ids is not None
    assert list(ids) == reference(tmp_path).apply_chat_template(HELLO, tokenize=True, return_dict=False, **kwargs)


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    (write(tmp_path) / "chat_template.jinja").write_text("hello")
    assert list(ModelTokenizer.from_folder(tmp_path).chat({"messages": HELLO}) or []) == [WORDS.index("hello")]


def test_completions_begin_with_the_special_tokens_unless_told_otherwise(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(write(tmp_path))
    assert tokenizer.completion({"prompt": "hello there"}) == array("I", [0, 8, 9])
    assert tokenizer.completion({"prompt": ["hello there"], "add_special_tokens": False}) == array("I", [8, 9])


def test_parts_of_text_are_joined_and_the_body_stays_as_it_was(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(write(tmp_path))
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert tokenizer.chat(body) == tokenizer.chat({"messages": [{"role": "user", "content": "hello there"}]})
    assert body["messages"][0]["content"] is parts


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "wizard", "content": "hello"}]},
        {"messages": ["hello"]},
        {"messages": None},
        {"messages": HELLO, "chat_template": "{{ 1 }}"},
    ],
)
def test_what_cannot_be_rendered_has_no_ids(tmp_path: Path, body: dict[str, object]) -> None:
    assert ModelTokenizer.from_folder(write(tmp_path)).chat(body) is None


def test_a_model_without_a_template_has_completions_only(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(write(tmp_path, template=None))
    assert tokenizer.chat({"messages": HELLO}) is None
    assert tokenizer.completion({"prompt": ["hello", "there"]}) is None


def test_templates_cannot_reach_out(tmp_path: Path) -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    assert ModelTokenizer.from_folder(write(tmp_path, template=hostile)).chat({"messages": HELLO}) is None


@pytest.mark.parametrize(
    "arguments",
    [{"chat_template": "{{ 1 }}"}, {"messages": []}, {"tools": []}, {"bos_token": "x"}, {"raise_exception": 1}, [1]],
)
def test_arguments_of_a_template_are_not_those_of_the_router(tmp_path: Path, arguments: object) -> None:
    tokenizer = ModelTokenizer.from_folder(write(tmp_path))
    assert tokenizer.chat({"messages": HELLO, "chat_template_kwargs": arguments}) is None
    assert tokenizer.chat({"messages": HELLO, "chat_template_kwargs": {}}) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": HELLO * 2000},
        {"messages": [{"role": "user", "content": "hello", "tool_calls": [[]] * 9000}]},
        {"messages": HELLO, "documents": [{}] * 9000},
        {"messages": HELLO, "tools": [1] * 9000},
    ],
    ids=["messages", "calls", "documents", "tools"],
)
def test_a_template_is_not_given_many_values_to_loop_over(
    tmp_path: Path, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ModelTokenizer.from_folder(write(tmp_path))
    monkeypatch.setattr(tokenizer, "_template", NeverRendered())
    assert tokenizer.chat(fields) is None


class NeverRendered:
    def render(self, values: object) -> str:
        raise AssertionError("it was rendered")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{{ messages[9].x.y }}",
        "{{ 'x' + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content * 10 ** 18 }}",
    ],
)
def test_what_a_template_stumbles_over_has_no_ids(tmp_path: Path, template: str) -> None:
    assert ModelTokenizer.from_folder(write(tmp_path, template=template)).chat({"messages": HELLO}) is None


LOOPS = """{% for a in range(30000) %}{% for b in messages * 30000 %}{% for c in [1] * 30000 %}
{% endfor %}{% endfor %}{% endfor %}"""
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
RANGES = "{% for a in range(30000) %}{{ range(90000)|list|length }}{% endfor %}"


@pytest.mark.parametrize("template", [LOOPS, CALLS, RANGES], ids=["loops", "calls", "ranges"])
def test_a_template_that_would_go_on_for_ever_has_no_ids(tmp_path: Path, template: str) -> None:
    tokenizer = ModelTokenizer.from_folder(
        write(tmp_path, template="{% if messages|length > 1 %}" + template + "{% endif %} there")
    )
    assert tokenizer.chat({"messages": HELLO}) is None
    assert tokenizer.chat({"messages": HELLO[:1]}) is not None, "and each prompt counts anew"


def test_loops_know_their_place_as_in_transformers(tmp_path: Path) -> None:
    template = """{%- for each in messages if each.role != 'tool' %}
    {%- if loop.last %}there{% elif loop.first %}hello{% endif %}
    {{ ' stay' * loop.length }}{{ ' short' * loop.revindex }}
    {%- if loop.previtem is defined %} user{% endif %} {% if loop.index == 3 %}{% break %}{% endif %}
    {%- else %}tools{% endfor %}{% for x in nothing %}{% else %} system{% endfor %}"""
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    ours, theirs = ModelTokenizer.from_folder(tmp_path), reference(tmp_path)
    theirs.chat_template = template
    for messages in (HELLO * 3, HELLO[:1], [{"role": "tool", "content": ""}]):
        ids = ours.chat({"messages": messages})
        assert ids is not None
        assert list(ids) == theirs.apply_chat_template(messages, return_dict=False)


def test_a_text_that_the_tokenizer_has_no_tokens_for_has_no_ids(tmp_path: Path) -> None:
    write(tmp_path)
    lacking = Tokenizer(models.WordLevel({"hello": 0}, unk_token="<unk>"))
    lacking.pre_tokenizer = pre_tokenizers.Whitespace()
    lacking.save(str(tmp_path / "tokenizer.json"))
    tokenizer = ModelTokenizer.from_folder(tmp_path)
    assert tokenizer.chat({"messages": HELLO}) is None
    assert tokenizer.completion({"prompt": "hello there"}) is None
    assert tokenizer.completion({"prompt": "hello hello"}) == array("I", [0, 0])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        ModelTokenizer.from_folder(tmp_path)


def test_files_that_make_no_sense_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat template"):
        ModelTokenizer.from_folder(write(tmp_path, template="{% if %}"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        ModelTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "config", ["[]", "null", "[" * 100_000, '{"a"', '{"chat_template": "' + "{{ " + "(" * 3000 + '"}']
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, config: str) -> None:
    (write(tmp_path) / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=str(tmp_path)):
        ModelTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("named", [[{"name": "default"}], ["x"], [{}], [{"name": "rag", "template": "x"}]])
def test_of_several_templates_none_is_taken_that_is_no_default(tmp_path: Path, named: list[object]) -> None:
    (write(tmp_path) / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ModelTokenizer.from_folder(tmp_path).chat({"messages": HELLO}) is None
