"""`make demo`: two engine replicas on CPU, the router in front, and a conversation through the gateway URL.

python examples/demo.py [--keep] [--port 8080]
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

DEPLOYMENT = Path(__file__).parent / "smollm2.yaml"
TEXT = """Paris is the capital of France. The city lies on the river Seine, in the north of the country. About two \
million people live in it, and eleven million in the whole region. The Eiffel Tower, 330 metres high, was built for \
the World's Fair of 1889. The Louvre, once a palace of kings, is the most visited museum of the world. The first line \
of its underground railway, the Metro, was opened in the year 1900; today there are sixteen lines. \
Notre-Dame stands on an island in the river; its building began in 1163 and took almost two hundred years. The city \
has two airports and six railway stations, and from the Gare du Nord trains run through a tunnel under the sea \
to London. The Sorbonne, one of the oldest universities of Europe, was founded in the thirteenth century. Every summer \
the last stage of the Tour de France, a bicycle race of three weeks, ends on the avenue of the Champs-Élysées, which \
leads from the Place de la Concorde to the Arc de Triomphe, where twelve streets meet."""
QUESTIONS = (f"{TEXT}\n\nOn which river does Paris lie?", "And how high is the Eiffel Tower?")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    parser.add_argument("--port", type=int, default=8080, help="of the gateway (default: 8080)")
    options = parser.parse_args()
    url = f"http://127.0.0.1:{options.port}"
    command = [sys.executable, "-m", "headwater", "up", str(DEPLOYMENT), "--port", str(options.port)]
    up = subprocess.Popen(command)
    try:
        wait_until_ready(up, url)
        converse(url)
        if options.keep:
            print(f"\nIt stays up until Ctrl-C. Try from another terminal:\n\n{what_next(url)}", flush=True)
            up.wait()
        else:
            print(f"\nmake demo KEEP=1 leaves it up. Then try:\n\n{what_next(url)}\n", flush=True)
    except KeyboardInterrupt:
        pass  # `headwater up` has got the Ctrl-C, too, and is stopping
    finally:
        if up.poll() is None and not options.keep:
            up.send_signal(signal.SIGINT)
        status = up.wait()
    return status


def wait_until_ready(up: subprocess.Popen[bytes], url: str) -> None:
    """Until both replicas are; `headwater up` shows how far they are."""
    while True:
        if up.poll() is not None:
            raise SystemExit(up.returncode or 1)
        try:
            if httpx.get(f"{url}/ready").json().get("ready_endpoints") == 2:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)


def converse(url: str) -> None:
    messages: list[dict[str, Any]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        request = {"model": "smollm2", "messages": messages, "max_tokens": 48, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=120)
        answer.raise_for_status()
        body = answer.json()
        messages.append(body["choices"][0]["message"])
        usage = body["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"\n> {question.splitlines()[-1]}\n{messages[-1]['content']}")
        print(
            f"  served by {answer.headers['x-headwater-endpoint']} "
            f"({answer.headers['x-headwater-decision']} decision); "
            f"{cached} of {usage['prompt_tokens']} prompt tokens came from its cache",
            flush=True,
        )


def what_next(url: str) -> str:
    body = '{"model": "smollm2", "messages": [{"role": "user", "content": "What is a river?"}]}'
    return f"""\
curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'
{url}            in a browser: what is served, and where to read on
.venv/bin/headwater top{"" if url.endswith(":8080") else f" {url}"}          # live: load, caches, models
.venv/bin/headwater ps           # the processes, and how they do; logs -f shows what they write
.venv/bin/headwater --help       # all commands; README.md and docs/ say more"""


if __name__ == "__main__":
    sys.exit(main())
