"""Each flag that a server is started with, its value and its variables are such as its own launcher's help knows."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from headwater import backends
from headwater.backends.base import Pod
from headwater.resource import Quantization
from tests.headwater.test_backends import deployment

FIXTURES = Path(__file__).parent.parent / "fixtures"
ADAPTERS = [{"name": "o/a", "source": "hf://o/a"}]
OWN_VARIABLES = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"}
"""Of the server, for which its launcher has no flag."""
MOST: dict[str, dict[str, Any]] = {
    "sglang-0.5.23": {"cache": {"hostGiB": 1, "fraction": 0.8}, "parallelism": {"tensor": 4, "nodes": 2}},
    "tgi-3.3.7": {"parallelism": {"tensor": 2}},
}
"""What makes the most flags, beside what all of them take."""


def known_flags(folder: str) -> dict[str, list[str]]:
    """The values that are allowed, by flag and by variable; none: any."""
    known: dict[str, list[str]] = {}
    for line in (FIXTURES / folder / "launcher-help.txt").read_text().splitlines()[1:]:
        allowed = re.search(r"\[possible values: ([^\]]*)\]", line)
        known[line.split()[0]] = allowed[1].split(", ") if allowed else []
        if variable := re.search(r"\[env: (\w+)=", line):
            known[variable[1]] = []
    return known


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize("dtype", ["auto", "fp8"])
@pytest.mark.parametrize("folder", MOST)
def test_a_server_is_told_only_what_its_launcher_knows(folder: str, dtype: str, quantization: str) -> None:
    known, backend = known_flags(folder), backends.get(folder.partition("-")[0])
    spec = {name: dict(value) for name, value in MOST[folder].items()}
    spec["cache"] = {"dtype": dtype, **spec.get("cache", {})}
    wanted = deployment(context={"maxTokens": 4096}, quantization=quantization, adapters=ADAPTERS, **spec)
    leader = "leader" if wanted.spec.parallelism.nodes > 1 else None
    pod = Pod("hf://o/m", False, 8000, 5557, 60, leader=leader, admin_key=True, replay_port=5757)
    launch = backend.launch(wanted, pod)
    flags = [(each, launch.argv[place + 1 :]) for place, each in enumerate(launch.argv) if each.startswith("--")]
    assert len(flags) >= 7
    for flag, behind in flags:
        assert flag in known
        assert not known[flag] or behind[0] in known[flag], f"{flag} {behind[0]}"
    assert launch.env.keys() - OWN_VARIABLES <= known.keys()
