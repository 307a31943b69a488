"""What other engines' parsers find in our texts, as fixtures that `make test` holds ours against.

    python -m tests.parsers sglang=PYTHON vllm=PYTHON harmony=PYTHON

PYTHON: of the environment that the engine is installed in. `harmony`: OpenAI's own parser of its format.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tests.parsers.answers import answers
from tests.parsers.texts import TOOLS, made

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parsers"


def record(engine: str, python: str) -> None:
    texts = [asdict(each) for each in (answers() if engine == "harmony" else made())]
    script = Path(__file__).with_name(f"of_{engine}.py")
    asked = json.dumps({"tools": TOOLS, "texts": texts})
    told = json.loads(subprocess.check_output([python, script], input=asked, text=True).splitlines()[-1])
    FIXTURES.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(calls, ensure_ascii=False)}" for name, calls in told["found"].items()]
    head = f'{{"version": {json.dumps(told["version"])}, "found": {{\n'
    (FIXTURES / f"{engine}.json").write_text(head + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        record(*each.split("=", 1))
