"""From `helm install` and `kubectl apply` to an answer: a real model on a real kubelet, through the gateway."""

import pytest
import yaml

from e2e.harness import ROOT, Client, apply, kubectl, wait_ready, wait_routable
from e2e.models import template

TEXT = "The Seine is a river in the north of France. It flows through Paris and into the English Channel. " * 12


@pytest.mark.timeout(600)
def test_a_conversation_through_the_gateway_and_its_second_turn_from_cache(client: Client, namespace: str) -> None:
    resource = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
    resource["metadata"]["namespace"] = namespace
    resource["spec"]["template"] = template()
    resource["spec"]["backend"]["args"] = ["--threads", "1", "--kv-cache-gib", "0.5"]
    apply(resource)
    wait_ready("smollm2", namespace)
    wait_routable("smollm2", namespace)

    question = f"{TEXT}\nWhich river flows through Paris?"
    first, second = client.converse("smollm2", question, "And into which sea?", max_tokens=12)
    assert first["choices"][0]["message"]["content"]
    usage = second["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    print(f"second turn: {cached} of {usage['prompt_tokens']} prompt tokens from cache, by {second['endpoint']}")
    assert second["endpoint"] == first["endpoint"]
    assert cached > usage["prompt_tokens"] / 2
    assert client.ask("small", "Hello!")["status"] == 200, "its other name"

    assert "Ready" in kubectl("get", "md", "smollm2", "-n", namespace)
    kubectl("wait", "--for=condition=Ready", "md/smollm2", "-n", namespace, "--timeout=5s")
