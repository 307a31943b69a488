"""The ModelDeployments that e2e tests apply."""

import json
import os
from pathlib import Path
from typing import Any

from e2e.harness import ROOT, Object

TAG = os.environ.get("HEADWATER_E2E_TAG", "1")
"""Of the images that e2e/run has built."""
ENGINE_IMAGE = os.environ.get("HEADWATER_E2E_ENGINE_IMAGE", f"localhost/headwater-engine-e2e:{TAG}")
_TINY = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
TINY = f"random:{json.dumps(_TINY, separators=(',', ':'))}"
"""Random weights that any machine computes faster than it can be asked."""


def model(name: str, namespace: str, source: str = TINY, **spec: Any) -> Object:
    """On the bundled engine."""
    return {
        "apiVersion": "headwater.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": source},
            "backend": {"type": "headwater", "args": ["--threads", "1", "--kv-cache-gib", "0.25"]},
            "template": template(),
            "drainTimeout": "60s",
            "context": {"maxTokens": 1024},
        }
        | spec,
    }


def template() -> Object:
    """Where the engine's image has no torch: this checkout and its packages, mounted from the node."""
    if "HEADWATER_E2E_ENGINE_IMAGE" in os.environ:
        return {}
    packages = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    return {
        "spec": {
            "volumes": [host_path("checkout", ROOT), host_path("packages", packages)],
            "containers": [
                {
                    "name": "engine",
                    "imagePullPolicy": "IfNotPresent",
                    "volumeMounts": [
                        {"name": "checkout", "mountPath": "/headwater/checkout", "readOnly": True},
                        {"name": "packages", "mountPath": "/headwater/site-packages", "readOnly": True},
                    ],
                }
            ],
        }
    }


def host_path(name: str, path: Path) -> Object:
    return {"name": name, "hostPath": {"path": str(path), "type": "Directory"}}
