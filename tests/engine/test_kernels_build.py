"""How the C++ kernels are compiled: once, whole or not at all, and with no program but a compiler.

The compiler's place is taken by a script, which makes what has been compiled for this machine before.
"""

import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from headwater_engine.kernels.build import build

_CODE = "import torch; from headwater_engine.kernels import select; print(select(torch.float32).name)"
PATIENCE = 180  # seconds: a guard
_NAMES = sorted(path.stem for path in Path(build.__code__.co_filename).parent.glob("*.cpp"))


@dataclass(slots=True)
class Machine:
    """Processes that share a folder for what is compiled, and a compiler."""

    folder: Path
    library: Path
    """Compiled before, elsewhere."""

    def start(self, **environment: str) -> subprocess.Popen[str]:
        compiler = self.folder / "compiler"
        compiler.write_text(
            f"""#!{sys.executable}
import shutil, sys
made = sys.argv[-1]
with open({str(self.folder / "calls")!r}, "a") as calls:
    print(made, file=calls)
shutil.copy({str(self.library)!r}, made)
"""
        )
        compiler.chmod(0o755)
        changes = {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(self.folder / "built"), "PATH": "/nowhere"}
        return subprocess.Popen(
            [sys.executable, "-c", _CODE], env=os.environ | changes | environment, stdout=subprocess.PIPE, text=True
        )

    def compiled(self) -> list[str]:
        """The files that the compiler was told to make."""
        calls = self.folder / "calls"
        return sorted(Path(line).name for line in calls.read_text().splitlines()) if calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    library = build().__file__
    assert library is not None
    return Machine(tmp_path, Path(library))


def kernels(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output.splitlines()[-1]


def test_processes_that_start_together_compile_once(machine: Machine) -> None:
    names = {kernels(process) for process in [machine.start() for _ in range(3)]}
    assert len(names) == 1 and not names.pop().startswith("cpu-torch")
    assert machine.compiled() == sorted([machine.library.name, *(f"{name}.o" for name in _NAMES)])


def test_what_is_compiled_needs_neither_compiler_nor_path_nor_a_folder_that_can_be_written(machine: Machine) -> None:
    built = machine.folder / "built"
    built.mkdir()
    (built / machine.library.name).symlink_to(machine.library)
    built.chmod(0o555)
    try:
        assert not kernels(machine.start(CXX="/no/such/compiler")).startswith("cpu-torch")
    finally:
        built.chmod(0o755)
    assert machine.compiled() == []
    assert [path.name for path in built.iterdir()] == [machine.library.name]


def test_a_library_that_cannot_be_used_is_compiled_anew(machine: Machine) -> None:
    (machine.folder / "built").mkdir()
    (machine.folder / "built" / machine.library.name).write_bytes(b"torn")
    assert not kernels(machine.start()).startswith("cpu-torch")
    assert machine.library.name in machine.compiled()


def test_nothing_but_a_whole_library_is_left_behind(machine: Machine) -> None:
    built = machine.folder / "built"
    killed = built / f"{machine.library.stem}-killed"  # what a build leaves that could not tidy up
    killed.mkdir(parents=True)
    (killed / "gemm.o").touch()
    assert kernels(machine.start(CXX="/bin/false")).startswith("cpu-torch: /bin/false ended with status 1")
    assert [path.suffix for path in built.iterdir()] == [".lock"]
    kernels(machine.start())
    assert sorted(path.suffix for path in built.iterdir()) == [".lock", ".so"]


def test_compilers_end_with_the_process_that_is_killed(machine: Machine) -> None:
    """And with them what they have started, which does the work; what is half written is in nobody's way."""
    pipe, endless = machine.folder / "pipe", machine.folder / "endless"
    os.mkfifo(pipe)
    endless.write_text(
        f"""#!{sys.executable}
import os, time
os.fork()
with open({str(pipe)!r}, "w") as pipe:
    print("begun", file=pipe, flush=True)
    time.sleep(600)
"""
    )
    endless.chmod(0o755)
    process = machine.start(CXX=str(endless))
    with pipe.open("rb", buffering=0) as compilers:
        compilers.readline()
        process.kill()
        process.communicate()
        while True:
            assert select.select([compilers], [], [], PATIENCE)[0], "one still runs"
            if not compilers.read(4096):
                break
    assert not kernels(machine.start()).startswith("cpu-torch")
    assert sorted(path.suffix for path in (machine.folder / "built").iterdir()) == [".lock", ".so"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/no/such/compiler"}, "cpu-torch: /no/such/compiler (CXX) not found"),
        ({"CXX": ""}, "cpu-torch: no C++ compiler found (c++, g++, clang++)"),
        ({"HEADWATER_KERNELS": "torch"}, "cpu-torch: HEADWATER_KERNELS=torch"),
        ({"TORCH_EXTENSIONS_DIR": "/dev/null/built"}, "cpu-torch: Not a directory: /dev/null/built"),
    ],
    ids=["no such compiler", "no compiler", "asked for", "no folder"],
)
def test_slow_kernels_say_why_they_run(machine: Machine, environment: dict[str, str], reason: str) -> None:
    assert kernels(machine.start(**environment)) == reason
