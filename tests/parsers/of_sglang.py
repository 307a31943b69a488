"""SGLang's parsers. Run by its own Python: texts come as JSON, what it finds in each goes out as JSON.

Nothing of this repository is imported.
"""

import json
import sys

from sglang.srt.entrypoints.openai.protocol import Function, Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.version import __version__

NAMES = {
    "hermes": "qwen25",
    "qwen3_coder": "qwen3_coder",
    "llama3_json": "llama3",
    "mistral": "mistral",
    "mistral 11": "mistral",
    "deepseek_v3": "deepseekv3",
    "deepseek_v31": "deepseekv31",
    "deepseek_v32": "deepseekv32",
    "deepseek_v4": "deepseekv4",
    "deepseek_v41": "deepseekv41",
    "pythonic": "pythonic",
    "harmony": "gpt-oss",
}
asked = json.load(sys.stdin)
tools = [
    Tool(type="function", function=Function(name=name, parameters={"type": "object", "properties": properties}))
    for name, properties in asked["tools"].items()
]
found = {}
for each in asked["texts"]:
    try:
        _, calls = FunctionCallParser(tools, NAMES[each["format"]]).parse_non_stream(each["text"])
        found[each["id"]] = [[call.name, call.parameters] for call in calls]
    except Exception as error:
        found[each["id"]] = f"{type(error).__name__}: {error}"
print(json.dumps({"version": __version__, "found": found}))
