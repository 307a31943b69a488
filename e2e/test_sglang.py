"""The real SGLang in a pod, on the CPU: of a folder of installed packages on the node, as there is no image for that.

HEADWATER_PEERS_DIR names the folder with a virtual environment `sglang` in it, of the Python of the engine's image.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import Client, apply, condition, find, wait_ready
from e2e.models import ENGINE_IMAGE, host_path, model
from e2e.test_ranks import answers_a_conversation
from tests.engine.tiny import make_tiny

PEERS = Path(os.environ.get("HEADWATER_PEERS_DIR", "/var/lib/headwater-peers"))
STATE = Path(os.environ.get("HEADWATER_CLUSTER_DIR", "/var/lib/headwater-e2e"))
PACKAGES = PEERS / "sglang" / "lib" / "python3.11" / "site-packages"
ARGUMENTS = [
    *("--device", "cpu", "--attention-backend", "torch_native", "--dtype", "float32"),
    *("--max-total-tokens", "8192", "--max-running-requests", "4"),
]


@pytest.mark.skipif(not PACKAGES.is_dir(), reason=f"SGLang is not installed in {PACKAGES}")
@pytest.mark.skipif(not STATE.is_dir(), reason="the cluster's nodes are not this machine")
@pytest.mark.timeout(1200)
def test_sglang_itself_is_ready_and_answers_from_its_cache(client: Client, namespace: str) -> None:
    apply(model("sglang", namespace, "file:///model", **sglang(tiny())))
    wait_ready("sglang", namespace, timeout=900)
    [pod] = find("pods", namespace, "headwater.dev/deployment=sglang,app.kubernetes.io/component=engine")
    assert "sglang.launch_server" in pod["spec"]["containers"][0]["command"]
    assert condition(pod, "Ready")["status"] == "True"
    answers_a_conversation("sglang", namespace, client)


def tiny() -> Path:
    """A folder that the pods' user can read."""
    folder = STATE / "models" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    make_tiny("qwen3", folder, max_position_embeddings=2048)
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def sglang(folder: Path) -> dict[str, Any]:
    """Of a spec. With a limit of no GPU, none is asked for."""
    mounts = [("packages", "/headwater/site-packages"), ("model", "/model")]
    container = {
        "name": "engine",
        "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in mounts],
    }
    env = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "2", "DO_NOT_TRACK": "1"}
    return {
        "backend": {"type": "sglang", "image": ENGINE_IMAGE, "args": ARGUMENTS, "env": env},
        "resources": {"limits": {"nvidia.com/gpu": 0}},
        "template": {
            "spec": {
                "volumes": [host_path("packages", PACKAGES), host_path("model", folder)],
                "containers": [container],
            }
        },
    }
