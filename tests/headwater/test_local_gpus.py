"""`headwater up`: each replica has GPUs of its own."""

from pathlib import Path

import pytest

from headwater.cli.local.gpus import visible_gpus
from headwater.cli.local.plan import plan_replicas
from headwater.resource import ResourceError
from tests.headwater.test_local import deployments, ours


def seen(tmp_path: Path, text: str, gpus: str) -> dict[str, str | None]:
    """By replica, the GPUs that it sees, where it is told."""
    replicas = plan_replicas(deployments(tmp_path, text), tmp_path, cores=2, gpus=gpus.split())
    return {each.process.name: each.process.environment.get("CUDA_VISIBLE_DEVICES") for each in replicas}


def test_each_replica_sees_gpus_of_its_own(tmp_path: Path) -> None:
    vllm = {"backend": {"type": "vllm"}, "model": {"source": "hf://owner/model"}}
    text = f"{ours('a', 2, parallelism={'tensor': 2})}\n---\n{ours('b', 1, **vllm)}"
    assert seen(tmp_path, text, "0 1 2 3 4 5") == {"a-0": "0,1", "a-1": "2,3", "b-0": "4"}
    assert seen(tmp_path, text, "") == {"a-0": None, "a-1": None, "b-0": None}, "they find none"


def test_gpus_that_the_resource_chooses_are_no_others(tmp_path: Path) -> None:
    chosen = ours("a", 2, backend={"env": {"CUDA_VISIBLE_DEVICES": "0,GPU-5"}})
    assert seen(tmp_path, f"{chosen}\n---\n{ours('b', 1)}", "0 1") == {"a-0": "0,GPU-5", "a-1": "0,GPU-5", "b-0": "1"}


@pytest.mark.parametrize(
    "backend",
    [{"args": ["--device", "cpu"]}, {"args": ["--device=cpu"]}, {"env": {"HEADWATER_ENGINE_DEVICE": "cpu"}}],
    ids=str,
)
def test_who_runs_on_cpus_takes_no_gpu(backend: dict[str, object], tmp_path: Path) -> None:
    text = f"{ours('a', 3, backend=backend)}\n---\n{ours('b', 1)}"
    assert seen(tmp_path, text, "7") == {"a-0": None, "a-1": None, "a-2": None, "b-0": "7"}


def test_too_few_gpus_are_refused_with_the_sum(tmp_path: Path) -> None:
    text = f"{ours('a', 2, parallelism={'tensor': 2})}\n---\n{ours('b', 1)}"
    chosen = ours("c", 1, backend={"env": {"CUDA_VISIBLE_DEVICES": "3"}})
    with pytest.raises(ResourceError, match=r"here 2 x 2 \(a\) \+ 1 x 1 \(b\) = 5, and this machine shows 4 \(0, 1"):
        seen(tmp_path, text, "0 1 2 3")
    with pytest.raises(
        ResourceError, match=r"= 5, and this machine shows 5 .*, 1 of them chosen in spec\.backend\.env"
    ):
        seen(tmp_path, f"{text}\n---\n{chosen}", "0 1 2 3 4")


@pytest.mark.parametrize(
    ("variable", "found"),
    [("3,1", ["3", "1"]), ("GPU-8a, MIG-7", ["GPU-8a", "MIG-7"]), ("2,-1,0", ["2"]), ("", []), ("-1", [])],
)
def test_the_gpus_are_those_that_the_user_lets_be_seen(
    variable: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == found


@pytest.mark.parametrize(
    ("script", "found"), [("printf '0\\n1\\n'", ["0", "1"]), ("echo No devices were found; exit 6", []), (None, [])]
)
def test_else_they_are_those_of_the_driver(
    script: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == found
