"""Asks the gateway one question: what `helm test` runs, in the router's image. The gateway's URL is the argument.

HEADWATER_API_KEY is the key, where the gateway asks for one.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 20
"""Seconds for one model."""


QUESTION = "What is the capital of France?"


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that comes back. Raises OSError, which says what was answered."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key := os.environ.get("HEADWATER_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code} {error.read().decode(errors='replace')}") from None


def main(gateway: str) -> str | None:
    """What went wrong, if something did."""
    try:
        print("gateway:", call(f"{gateway}/health")["status"])
        models = call(f"{gateway}/v1/models")["data"]
    except OSError as error:
        return f"{gateway}: {error}"
    # Those without a replica, and those whose replicas have died, are listed, too.
    ready = [model["id"] for model in models if model.get("ready")]
    if not ready:
        print(f"{len(models)} models, and none is Ready: apply a ModelDeployment, wait until it is, then test again.")
        return None
    # One answer shows that the gateway works.
    for model in ready:
        chat = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": QUESTION}]}
        try:
            answer = call(f"{gateway}/v1/chat/completions", chat)
        except OSError as error:
            print(f"{model}: {error}")
            continue
        print(f"{model}, {QUESTION}\n{answer['choices'][0]['message']['content']}")
        return None
    return f"none of {len(ready)} models answered within {TIMEOUT} seconds each"


sys.exit(main(sys.argv[1]))
