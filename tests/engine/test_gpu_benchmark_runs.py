"""Each script of benchmarks/gpu runs to its end: on a CPU, with tiny shapes and a clock for a timer.

Those that measure kernels run in Triton's interpreter, those that measure steps with plain torch. What they measure
here says nothing; a slip in one would cost minutes of a GPU that is lent for fifteen.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from headwater.cli import serve
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.shapes import SHAPES

if torch.cuda.is_available():
    pytest.skip("there is a GPU, to run them in earnest", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
TINY = {"num_hidden_layers": 1, "vocab_size": 70, "tie_word_embeddings": False}


def by_the_clock(call: Callable[[], Any], times: int) -> float:
    begun = time.perf_counter()
    call()
    return max(time.perf_counter() - begun, 1e-9)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Imports one, with stand-ins below it, and constants of it and of what it imports in place of its own."""
    for folder in (FOLDER, FOLDER.parent):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(SHAPES, "llama-3.1-8b", {**SHAPES["tiny"], **TINY})  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    before = set(sys.modules)
    measure: Any = import_module("measure")
    stand_ins: dict[str, Any] = {
        "OUT": tmp_path,
        "L2_SEVERAL_TIMES": 1,
        "WARM": 0,
        "COPIED": 64,
        "PRODUCT": 8,
        "median_of": by_the_clock,
        "recorded": lambda run: run,
        "machine": lambda: {"gpu": "none"},
    }
    for name, value in stand_ins.items():
        assert hasattr(measure, name)
        monkeypatch.setattr(measure, name, value)
    shapes: Any = import_module("shapes")
    # The interpreter cuts bfloat16 off, and CPUs have no products of it with results in float32.
    monkeypatch.setattr(shapes, "DTYPE", torch.float32)
    monkeypatch.setattr(shapes, "find_groups", partial(shapes.find_groups, worth=16))

    def load(name: str, **constants: Any) -> ModuleType:
        module = import_module(name)
        for path, value in constants.items():
            place, _, constant = path.rpartition("__")
            owner = sys.modules[place] if place else module
            assert hasattr(owner, constant), f"{path} is gone"
            monkeypatch.setattr(owner, constant, value)
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def repeated(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """For a recorded step: done again, with the result in the same memory."""
    output = run()
    return lambda: output.copy_(run())


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return found


STEP = {"PROMPT": 24, "BUDGET": 40, "STEPS": 4, "WARM": 1, "SEQUENCES": (1, 2), "MOST": 2}


def test_kernels(script: Callable[..., ModuleType], tmp_path: Path) -> None:
    """Every kernel that a step launches has a row."""
    script(
        "kernels",
        SEQUENCES=(1, 2, 2),
        CONTEXTS=(40,),
        PROMPTS=((20, 20), (4, 20)),
        PREFIX=32,
        BEHIND=40,
        MIXED=(2, 20, 12),
        beside__FEW=2,
        beside__MANY=3,
        beside__ROWS=(1, 3),
        beside__COMPUTING=3,
        beside__SEATS=2,
        beside__CONTEXT=40,
        sampled__ROWS=(2,),
    ).main()
    names = " ".join(row["kernel"] for row in rows(tmp_path, "kernels"))
    for kernel in ("decode attention", "prompt attention", "shared", "in 8 bits", "residual + norm", "SiLU", "rope"):
        assert kernel in names
    for kernel in ("embedding", "spread", "merge", "all-reduce", "product, head", "top-k and top-p", "cut", "rank"):
        assert kernel in names
    assert all(float(row["µs"]) > 0 for row in rows(tmp_path, "kernels"))


def test_step(script: Callable[..., ModuleType], tmp_path: Path) -> None:
    script("shapes", kernels=TorchKernels)
    script("step", **STEP, cuda_recorder=lambda: repeated).main()
    found = rows(tmp_path, "step")
    assert [row["sequences"] for row in found] == [1, 2]
    for row in found:
        assert 0 < row["host ms"] <= row["step ms"] and 0 < row["host ms at 0"] <= row["depth 0 ms"]


def test_breakdown(script: Callable[..., ModuleType], tmp_path: Path) -> None:
    script("shapes", kernels=TorchKernels)
    script("step", **STEP)
    batches = [("decode", [24, 24], [1, 1]), ("prompts", [24], [24])]
    constants = {"BATCHES": batches, "REPLAYS": 1, "ACTIVITY": ProfilerActivity.CPU, "KIND": DeviceType.CPU}
    script("breakdown", **constants).main()
    assert {row["step"] for row in rows(tmp_path, "breakdown")} == {"decode", "prompts"}


def test_tilings(
    script: Callable[..., ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module: Any = script("tilings", DECODE=[(1, 40)], PROMPTS=[(20, 20)], SPLITS=(1, 2))
    decode, prompt = list(islice(module.decode_tilings(), 2)), list(islice(module.prompt_tilings(), 2))
    monkeypatch.setattr(module, "decode_tilings", lambda: iter(decode))
    monkeypatch.setattr(module, "prompt_tilings", lambda: iter(prompt))
    for arguments in (["--compile", "0", "2"], []):
        monkeypatch.setattr(sys, "argv", ["tilings.py", *arguments])
        module.main()
    assert "Tiling(" not in capsys.readouterr().out, "one that is not possible is told of"
    assert json.loads((tmp_path / "tilings.json").read_text()).keys() == {"decode 1 x 40", "prompt 20 of 20"}


class Server(BaseHTTPRequestHandler):
    """Answers as `headwater serve` does, as far as a load looks."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        self.send_response(200)
        self.end_headers()
        for event in [{"choices": [{"text": "a"}]}] * asked["max_tokens"] + [{"choices": [], "usage": usage}]:
            self.wfile.write(f"data: {json.dumps(event)}\n".encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_serve(script: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    @contextmanager
    def server(command: str, ready: Callable[[], bool], timeout: float) -> Iterator[None]:
        commands.append(command.split())
        port = int(commands[0][commands[0].index("--port") + 1])
        assert not ready()
        with ThreadingHTTPServer(("127.0.0.1", port), Server) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            assert ready()
            yield
            http.shutdown()

    loads = [("alone", 0, 2), ("behind", 3, 2)]
    module = script("serve", server=server, INPUT=4, OUTPUT=3, LOADS=loads)
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    module.main()
    assert [row["load"] for row in rows(tmp_path, "serve")] == ["alone", "behind"]
    # What it would start is what there is: the flags are those of the program.
    flags = commands[0][commands[0].index("serve") + 1 :]
    parser = argparse.ArgumentParser()
    serve.add_flags(parser)
    assert parser.parse_args(flags)


def test_the_command_runs_each_part_and_tells_of_one_that_fails(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\ncase "$*" in *step.py*) exit 3;; esac\n')
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho GPU\n")
    for program in (python, smi):
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "PYTHON": str(python)}
    parts = ["tests", "smollm2", "ceilings", "tilings", "kernels", "breakdown", "step", "serve"]
    ran = subprocess.run([FOLDER / "run", *parts], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1
    summary = (tmp_path / "summary").read_text()
    assert [name for name in parts if f"== {name}: status 0" in summary] == [name for name in parts if name != "step"]
    assert "== step: status 3" in summary
    calls = (tmp_path / "calls").read_text()
    named = {word for word in calls.split() if word.endswith(".py") and not word.startswith("tests/")}
    assert named and all((FOLDER.parents[1] / word).is_file() for word in named)
    tests = [word.partition("::")[0] for word in calls.split() if word.startswith("tests/")]
    assert tests and all((FOLDER.parents[1] / word).exists() for word in tests)
    assert {f"benchmarks/gpu/{each}.py" for each in ("kernels", "step", "serve", "breakdown", "tilings")} <= named
