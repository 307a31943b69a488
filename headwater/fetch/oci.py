"""oci://REGISTRY/IMAGE[:TAG]: a model in a container registry.

Either an artifact, a layer a file, as `oras push` makes it; or an image whose layers are archives, with the model at
its root or in `models/`.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from headwater.fetch.choice import choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.files import at_once, begin, inside, write
from headwater.fetch.patience import patiently
from headwater.fetch.progress import Watch
from headwater.fetch.registry import Reference, Registry

_TITLE: Final = "org.opencontainers.image.title"
_UNPACK: Final = "io.deis.oras.content.unpack"
_ARCHIVES: Final = (".tar", ".tar+gzip", ".tar.gzip")
_TIMEOUT: Final = 60.0
_ROOT: Final = "models"

Layer = Mapping[str, Any]


def fetch(source: str, folder: Path, revision: str) -> None:
    reference = Reference.parse(source.removeprefix("oci://"))
    with httpx.Client(timeout=_TIMEOUT) as client:
        registry = Registry(client, reference)
        layers = patiently(lambda: _layers(registry, reference.version))
        titles = {_title(layer) for layer in layers if not _packed(layer)}
        wanted = [layer for layer in layers if _packed(layer) or _title(layer) in choose(sorted(titles))]
        size = sum(layer["size"] for layer in wanted)
        packed = sum(layer["size"] for layer in wanted if _packed(layer))
        state = hashlib.sha256(" ".join(sorted(layer["digest"] for layer in wanted)).encode()).hexdigest()
        begin(folder, f"{source}@{state}", size + packed)  # archives lie beside what comes out of them
        with Watch(folder, size):
            at_once([partial(_get, registry, layer, _target(folder, layer)) for layer in wanted])
    for layer in wanted:  # in this order: later layers replace files of earlier ones
        if _packed(layer):
            _unpack(_target(folder, layer), folder)
    _lift(folder)


def _layers(registry: Registry, version: str) -> Sequence[Layer]:
    manifest = registry.manifest(version)
    if "manifests" in manifest:
        # The weights are the same for every platform.
        manifest = registry.manifest(manifest["manifests"][0]["digest"])
    layers: Sequence[Layer] = manifest.get("layers") or manifest.get("blobs") or []
    if not layers:
        raise FetchError("the image has no layers")
    return layers


def _packed(layer: Layer) -> bool:
    unpack = (layer.get("annotations") or {}).get(_UNPACK) == "true"
    return unpack or (not _title(layer) and str(layer.get("mediaType")).endswith(_ARCHIVES))


def _title(layer: Layer) -> str:
    return str((layer.get("annotations") or {}).get(_TITLE, ""))


def _target(folder: Path, layer: Layer) -> Path:
    if _packed(layer):
        return folder / f".{layer['digest'].replace(':', '-')}.archive"
    if not _title(layer):
        raise FetchError(f"a layer of type {layer.get('mediaType')} has no title, and is no archive that is known here")
    return inside(folder, _title(layer))


def _get(registry: Registry, layer: Layer, target: Path) -> None:
    digest, size = layer["digest"], layer["size"]
    if _unpacked(target).exists():
        return

    def attempt() -> None:
        write(target, size, lambda start: registry.blob(digest, start))
        if _digest(target) != digest:
            target.unlink()
            raise TransientError(f"{target.name} arrived damaged")

    patiently(attempt)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _unpack(archive: Path, folder: Path) -> None:
    if _unpacked(archive).exists():
        return
    try:
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise FetchError(f"a layer cannot be unpacked: {error}") from error
    archive.rename(_unpacked(archive))
    _unpacked(archive).write_bytes(b"")


def _unpacked(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.unpacked")


def _lift(folder: Path) -> None:
    """What is left of the unpacking goes, and the model comes up to the folder's root."""
    for mark in folder.glob(".*.unpacked"):
        mark.unlink()
    root = folder / _ROOT
    if root.is_dir() and not (folder / "config.json").exists():
        for path in root.iterdir():
            shutil.move(path, folder / path.name)
        root.rmdir()
