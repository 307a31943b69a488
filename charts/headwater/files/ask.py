"""Asks the gateway one question: what `helm test` runs, in the router's image. The gateway's URL is the argument."""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 300
"""Seconds: a model that was scaled to zero is woken first."""


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that comes back; ends the program with what was said where it was refused."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url}: {error}")


def main(gateway: str) -> None:
    print("gateway:", call(f"{gateway}/health")["status"])
    models = [model["id"] for model in call(f"{gateway}/v1/models")["data"]]
    if not models:
        print("No model is served yet: apply a ModelDeployment, then test again.")
        return
    question = "What is the capital of France?"
    chat = {"model": models[0], "max_tokens": 16, "messages": [{"role": "user", "content": question}]}
    answer = call(f"{gateway}/v1/chat/completions", chat)
    print(f"{models[0]}, {question}")
    print(answer["choices"][0]["message"]["content"])


main(sys.argv[1])
