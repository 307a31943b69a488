"""What the HTTP process knows of a model: how its texts become tokens, and what it refuses before they do."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from headwater.openai.errors import BadRequestError
from headwater.openai.request import SamplingDefaults, SamplingRequest
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.models.tokenizer import byte_level_tokenizer
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server import served_model
from headwater_engine.server.encoding import PromptEncoder
from headwater_engine.server.served_model import ServedModel
from tests.engine.tiny import make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


class Counting:
    """A tokenizer, and which of its methods are called."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        if not callable(value) or not name.startswith("encode"):
            return value
        return self._counted(name, value)

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            return method(*arguments, **options)

        return count


def test_texts_are_encoded_without_the_interpreters_lock() -> None:
    """tokenizers holds it in `encode`, and lets go of it in `encode_batch` only."""
    tokenizer = Counting(byte_level_tokenizer(300).backend_tokenizer)
    encode = PromptEncoder(tokenizer, [])  # type: ignore[arg-type]
    tokenizer.calls.clear()
    assert encode("hi", add_special_tokens=False) == byte_level_tokenizer(300).encode("hi")
    assert tokenizer.calls == ["encode_batch"]


def test_a_text_that_no_context_holds_is_refused_as_it_is() -> None:
    model = ServedModel(EngineSettings(model="random:tiny"))
    longest = max(map(len, model.backend.get_vocab()))
    model.check_length("x" * 10 * longest, 10, "prompt")
    with pytest.raises(BadRequestError, match=rf"has {10 * longest + 1} characters. .* 10 tokens") as refused:
        model.check_length("x" * (10 * longest + 1), 10, "prompt")
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")
    model.close()


def test_a_first_token_that_a_prompt_has_twice_is_warned_of_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(served_model, "log", SimpleNamespace(warning=lambda _, *, token: said.append(token)))
    backend = byte_level_tokenizer(320).backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>").save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny / name)
    model = ServedModel(EngineSettings(model=str(tmp_path)))
    assert model.encode("hi", add_special_tokens=True)[:1] == [256]
    assert said == []
    for _ in range(2):
        assert model.encode("<|endoftext|>hi", add_special_tokens=True)[:2] == [256, 256]
    assert said == ["<|endoftext|>"]


def test_no_prompt_is_cut_or_filled_up_as_the_tokenizers_file_says(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    model = ServedModel(EngineSettings(model=str(tmp_path)))
    assert [len(model.encode("x" * length, add_special_tokens=True)) for length in (1, 9)] == [1, 9]
    model.close()


def test_a_template_that_is_in_chat_template_json_alone_is_read(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    model = ServedModel(EngineSettings(model=str(tmp_path)))
    assert model.tokenizer.chat_template == "{{ messages[0].content }}!"
    model.close()


def test_a_tokenizer_file_that_tokenizers_refuses_is_said_in_a_sentence(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(LoadError, match=r"The tokenizer of .* cannot be loaded: "):
        ServedModel(EngineSettings(model=str(tmp_path)))


def test_an_added_token_of_its_own_kind_is_no_special_one() -> None:
    backend = byte_level_tokenizer(300).backend_tokenizer
    backend.add_tokens([AddedToken("<tool>", special=False)])
    encode = PromptEncoder(backend, ["<|im_end|>"])
    tool = backend.token_to_id("<tool>")
    assert tool in encode("<\udc00|im_end|><tool>", add_special_tokens=False)


# Sampling defaults


def model_with(tiny: Path, folder: Path, generation: dict[str, Any] | None = None, **settings: Any) -> ServedModel:
    for file in tiny.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ServedModel(EngineSettings(model=str(folder), **settings))


def chosen(model: ServedModel, **request: Any) -> SamplingParams:
    return model.sampling_params(SamplingRequest(**request), max_tokens=9, logprobs=None)


def test_a_requests_own_values_win_over_the_operators_which_win_over_the_models(tiny: Path, tmp_path: Path) -> None:
    model = model_with(
        tiny,
        tmp_path,
        {"temperature": 0.6, "top_p": 0.8, "top_k": 20.0, "do_sample": True, "repetition_penalty": None},
        override_generation_config=SamplingDefaults(temperature=0.2, presence_penalty=1.5),
    )
    params = chosen(model, top_p=1.0)
    assert (params.temperature, params.presence_penalty, params.top_p, params.top_k) == (0.2, 1.5, 1.0, 20)
    assert (params.repetition_penalty, params.frequency_penalty, params.min_p) == (1.0, 0.0, 0.0)
    assert chosen(model, temperature=0, presence_penalty=0.0).temperature == 0
    assert chosen(model, temperature=0, presence_penalty=0.0).presence_penalty == 0
    model.close()


def test_the_operators_values_hold_also_where_the_models_do_not(tiny: Path, tmp_path: Path) -> None:
    model = model_with(
        tiny,
        tmp_path,
        {"temperature": 0.6, "top_p": 0.8},
        generation_config="none",
        override_generation_config=SamplingDefaults(temperature=0.2),
    )
    assert (chosen(model).temperature, chosen(model).top_p) == (0.2, 1.0)
    model.close()


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"])
def test_a_generation_config_that_cannot_be_is_refused_at_the_start(tiny: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(
        LoadError, match=rf"generation_config.json cannot be used: `{field}` must .*--generation-config"
    ):
        model_with(tiny, tmp_path, {field: "much"})


def test_a_value_that_cannot_be_does_no_harm_where_the_operator_gives_another(tiny: Path, tmp_path: Path) -> None:
    model = model_with(tiny, tmp_path, {"temperature": 7}, override_generation_config=SamplingDefaults(temperature=0.2))
    assert chosen(model).temperature == 0.2
    model.close()


@pytest.mark.parametrize(
    ("request_fields", "api_default", "tokens"),
    [({}, 16, 7), ({"min_tokens": 8}, None, 8), ({}, None, 7)],
)
def test_the_length_of_an_answer_has_a_default_too(
    tiny: Path, tmp_path: Path, request_fields: dict[str, Any], api_default: int | None, tokens: int
) -> None:
    model = model_with(tiny, tmp_path, {"max_new_tokens": 7})
    assert model.usual_tokens(SamplingRequest(**request_fields), api_default) == tokens
    model.close()
