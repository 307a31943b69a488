"""Each flag that a server is started with, its value and its variables are such as its own launcher's help knows."""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from headwater import backends
from headwater.backends.base import Pod
from headwater.resource import Quantization
from tests.headwater.test_backends import deployment

FIXTURES = Path(__file__).parent.parent / "fixtures"
ADAPTERS = [{"name": "o/a", "source": "hf://o/a"}]
OWN_VARIABLES = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_HOST_IP"}
"""Of servers whose launchers have no flag for it."""
GROUP = {"tensor": 4, "nodes": 2}
MOST: dict[str, dict[str, Any]] = {
    "sglang-0.5.23": {"cache": {"hostGiB": 1, "fraction": 0.8}, "parallelism": GROUP, "adapters": ADAPTERS},
    # What the sources of 3.3.7 call themselves.
    "tgi-3.3.6-dev0": {"parallelism": {"tensor": 2}, "adapters": ADAPTERS},
    "vllm-0.32.0": {
        "cache": {"hostGiB": 1, "fraction": 0.8},
        "parallelism": GROUP,
        "adapters": ADAPTERS,
        "sampling": {"temperature": 0.5},
    },
}
"""What makes the most flags, beside what all of these take."""
QUANTIZED = [
    (
        folder,
        {
            **most,
            "context": {"maxTokens": 4096},
            "quantization": how,
            "cache": {**most.get("cache", {}), "dtype": dtype},
        },
    )
    for folder, most in MOST.items()
    for how in get_args(Quantization)
    for dtype in ("auto", "fp8")
]
PLAIN: tuple[str, dict[str, Any]] = ("transformers-5.24.0", {"model": {"aliases": ["o/m"]}})


def known_flags(folder: str) -> dict[str, list[str]]:
    """The values that are allowed, by flag and by variable; none: any."""
    known: dict[str, list[str]] = {}
    for line in (FIXTURES / folder / "launcher-help.txt").read_text().splitlines()[1:]:
        allowed = re.search(r"\[possible values: ([^\]]*)\]", line)
        known[line.split()[0]] = allowed[1].split(", ") if allowed else []
        if variable := re.search(r"\[env: (\w+)", line):
            known[variable[1]] = []
    return known


@pytest.mark.parametrize(("folder", "spec"), [*QUANTIZED, PLAIN])
def test_a_server_is_told_only_what_its_launcher_knows(folder: str, spec: dict[str, Any]) -> None:
    known, backend = known_flags(folder), backends.get(folder.partition("-")[0])
    wanted = deployment(**spec)
    leader = "leader" if wanted.spec.parallelism.nodes > 1 else None
    pod = Pod("hf://o/m", False, 8000, 5557, 60, leader=leader, admin_key=True, replay_port=5757, guarded=True)
    launch = backend.launch(wanted, pod)
    flags = [(each, launch.argv[place + 1 :]) for place, each in enumerate(launch.argv) if each.startswith("--")]
    assert len(flags) >= 2
    for flag, behind in flags:
        assert flag in known
        assert not known[flag] or behind[0] in known[flag], f"{flag} {behind[0]}"
    assert launch.env.keys() - OWN_VARIABLES <= known.keys()


@pytest.mark.parametrize("folder", [*MOST, PLAIN[0]])
def test_each_flag_in_the_file_of_a_backend_is_one_that_its_launcher_knows(folder: str) -> None:
    """Also those that no resource above comes to. Those that are refused in `spec.backend.args` may be cut: argparse
    takes the beginning of a name for it."""
    backend = backends.get(folder.partition("-")[0])
    source = inspect.getsource(sys.modules[type(backend).__module__])
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    named = {each for each in texts if isinstance(each, str) and re.fullmatch(r"--[a-z][a-z-]*", each)}
    assert named
    known = known_flags(folder).keys()
    assert named - backend.own_flags.keys() <= known
    assert [flag for flag in backend.own_flags if not any(name.startswith(flag) for name in known)] == []
