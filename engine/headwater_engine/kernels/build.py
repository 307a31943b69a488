"""Compiles the C++ kernels at first use, for this very CPU, and imports them.

    sources, flags, torch, Python, CPU ── hash ──> headwater_cpu_HASH.so    is it there? then it is imported
                                                       ^ renamed, once it is whole
    a.cpp b.cpp c.cpp ── the compiler, side by side ──> a.o b.o c.o ── linked

The compiler is called as it is: that needs no other program, and what is there is not compiled anew. The hash is in the
name, so a folder that several machines share holds a build for each. A lock has processes that start together compile
once; a rename puts nothing there that is not whole. Compilers end with the process that wants the kernels.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

import structlog
import torch

log = structlog.get_logger(__name__)

_FOLDER: Final = Path(__file__).parent
_FLAGS: Final = ["-O3", "-march=native", "-fopenmp-simd", "-std=c++20", "-pthread", "-fPIC"]
_COMPILERS: Final = ("c++", "g++", "clang++")
_GUARD: Final = "import os, signal, sys; sys.stdin.read(); os.killpg(0, signal.SIGKILL)"


class BuildError(Exception):
    """The kernels could not be compiled; the message says why, as far as the compiler does."""


def build() -> ModuleType:
    """The kernels, compiled where they are not yet. Raises BuildError."""
    sources = sorted([*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h")])
    identity = hashlib.sha256()
    python = sysconfig.get_config_var("EXT_SUFFIX")
    for text in (*(source.read_text() for source in sources), torch.__version__, python, *_FLAGS, _cpu()):
        identity.update(text.encode())
    name = f"headwater_cpu_{identity.hexdigest()[:16]}"
    library = _kept_in() / f"{name}.so"
    try:
        if (module := _import(name, library)) is not None:
            return module
        library.parent.mkdir(parents=True, exist_ok=True)
        with _alone(library.with_suffix(".lock")):
            module = _import(name, library)  # somebody else may have been faster
            if module is None:
                for left in library.parent.glob(f"{name}-*"):  # by a build that was killed: a living one has the lock
                    shutil.rmtree(left, ignore_errors=True)
                _compile(name, [source for source in sources if source.suffix == ".cpp"], library)
                module = _import(name, library)
    except OSError as error:
        raise BuildError(f"{error.strerror or error}: {error.filename or library}") from error
    if module is None:
        raise BuildError(f"{library} was compiled, and cannot be imported")
    return module


def _kept_in() -> Path:
    """Where torch keeps compiled extensions, too."""
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def _import(name: str, library: Path) -> ModuleType | None:
    """None where there is no such library, or one that cannot be used."""
    if not library.exists():
        return None
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        log.warning("compiled kernels cannot be used", library=str(library), reason=str(error))
        return None
    return module


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While it lasts no other process compiles the same. The system unlocks it where this process is killed."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(name: str, sources: Sequence[Path], library: Path) -> None:
    """Raises BuildError, and OSError where nothing can be written."""
    from torch.utils.cpp_extension import include_paths, library_paths  # seconds to import

    headers = [*include_paths("cpu"), sysconfig.get_path("include")]
    flags = [f"-DTORCH_EXTENSION_NAME={name}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    flags += [each for folder in headers for each in ("-isystem", folder)]
    linked = [f"-L{folder}" for folder in library_paths("cpu")]
    linked += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    compiler = _compiler()
    with (
        tempfile.TemporaryDirectory(dir=library.parent, prefix=f"{name}-") as scratch,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        _group_that_ends_with_us() as group,
    ):
        objects = [f"{scratch}/{source.stem}.o" for source in sources]
        commands = [
            [*compiler, *_FLAGS, *flags, "-c", str(source), "-o", made]
            for source, made in zip(sources, objects, strict=True)
        ]
        list(threads.map(partial(_run, group=group), commands))
        whole = f"{scratch}/{library.name}"
        _run([*compiler, "-shared", "-pthread", *objects, *linked, "-o", whole], group=group)
        Path(whole).replace(library)


def _compiler() -> list[str]:
    """CXX, which may have arguments, or the first one that is there. Raises BuildError."""
    if given := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(given[0]) is None:
            raise BuildError(f"{given[0]} (CXX) not found")
        return given
    found = next((each for each in _COMPILERS if shutil.which(each)), None)
    if found is None:
        raise BuildError(f"no C++ compiler found ({', '.join(_COMPILERS)})")
    return [found]


@contextmanager
def _group_that_ends_with_us() -> Iterator[int]:
    """A group of processes that is killed at the end of this one, whatever that ends of, or of what is done with it.

    What a compiler has started itself would run on for minutes. So a process waits in the group for the end of a pipe
    that only we hold, and takes all others with it.
    """
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0) as guard:
        try:
            yield guard.pid
        finally:
            os.killpg(guard.pid, signal.SIGKILL)


def _run(command: Sequence[str], group: int) -> None:
    """Raises BuildError with the line that says what is wrong."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", process_group=group
    )
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        wrong = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        raise BuildError(f"{command[0]} ended with status {result.returncode}: {wrong}")


def _cpu() -> str:
    """What decides over the instructions that -march=native uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
