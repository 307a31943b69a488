"""file://PATH and package://NAME: what is on this machine already, copied."""

import importlib.util
import shutil
from pathlib import Path

from headwater.fetch.choice import choose
from headwater.fetch.errors import FetchError
from headwater.fetch.files import begin, inside
from headwater.fetch.progress import Watch


def fetch(source: str, folder: Path, revision: str) -> None:
    root = _package(source) if source.startswith("package://") else Path(source.removeprefix("file://"))
    if root.is_file():
        files = {root.name: root}
    elif root.is_dir():
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        files = {name: root / name for name in choose(names) if not name.endswith((".py", ".pyc"))}
    else:
        raise FetchError(f"{source}: there is no {root}")
    states = {name: (path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()}
    size = sum(size for size, _ in states.values())
    begin(folder, f"{source} {sorted(states.items())}", size)
    with Watch(folder, size):
        for name, path in files.items():
            _copy(path, inside(folder, name))


def _copy(path: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    growing = target.with_name(f"{target.name}.incomplete")
    shutil.copyfile(path, growing)
    growing.rename(target)


def _package(source: str) -> Path:
    """Where an installed Python package lies. It is not imported: it may need anything."""
    name = source.removeprefix("package://")
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FetchError(f"the Python package {name!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
