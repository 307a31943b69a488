"""vLLM's parsers. Run by its own Python: texts come as JSON, what it finds in each goes out as JSON.

Nothing of this repository is imported. A tokenizer is wanted by all of them: here a token is a byte, or a marker.
"""

import json
import sys

import vllm
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

NAMES = {
    "hermes": "hermes",
    "qwen3_coder": "qwen3_coder",
    "llama3_json": "llama3_json",
    "mistral": "mistral",
    "mistral 11": "mistral",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v31": "deepseek_v31",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "deepseek_v41": "deepseek_v41",
    "pythonic": "pythonic",
}
"""Not harmony: of that it reads tokens."""
MARKERS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "<|python_tag|>", "<|eot_id|>"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "｜DSML｜", "<｜end▁of▁sentence｜>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in MARKERS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


asked = json.load(sys.stdin)
tokenizer = make_tokenizer()
tools = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in asked["tools"].items()
]
request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "hi"}], tools=tools)
found = {}
for each in asked["texts"]:
    if each["format"] not in NAMES:
        continue
    try:
        parser = ToolParserManager.get_tool_parser(NAMES[each["format"]])(tokenizer, request.tools)
        told = parser.extract_tool_calls(each["text"], request)
        found[each["id"]] = [[call.function.name, call.function.arguments] for call in told.tool_calls]
    except Exception as error:
        found[each["id"]] = f"{type(error).__name__}: {error}"
print(json.dumps({"version": vllm.__version__, "found": found}))
