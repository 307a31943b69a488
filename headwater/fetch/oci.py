"""oci://REGISTRY/IMAGE[:TAG][@DIGEST]: a model in a container registry.

Either an artifact, a layer a file, as `oras push` and ModelPack make it; or an image whose layers are archives, with
the model in `models/`, or else at its root. All is held to its digest, from the one in the source on, if it has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from headwater.fetch.download import File
from headwater.fetch.errors import FetchError
from headwater.fetch.promise import Digest, Promise
from headwater.fetch.registry import Reference, Registry
from headwater.fetch.source import Asking, Listing
from headwater.fetch.transport import Remote

_TITLES: Final = ("org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath")
_UNPACK: Final = "io.deis.oras.content.unpack"
_ARCHIVES: Final = (".tar", ".tar+gzip", ".tar.gzip", ".tar+zstd", ".tar.zstd")
_MODEL_PACK: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
"""Media types that say whether it is an archive; others with a title are files, whatever their type says."""


@dataclass(frozen=True, slots=True)
class _Layer:
    digest: Digest
    size: int
    kind: str
    title: str
    packed: bool

    @classmethod
    def of(cls, name: str, written: Mapping[str, Any]) -> "_Layer":
        digest, size, kind = Digest.parse(written.get("digest")), written.get("size"), str(written.get("mediaType"))
        if digest is None or not isinstance(size, int) or size < 0:
            raise FetchError(f"{name}: a layer has no digest, or no size, that can be read")
        given = written.get("annotations")
        annotations = given if isinstance(given, dict) else {}
        title = next((str(annotations[each]) for each in _TITLES if each in annotations), "")
        archive = kind.endswith(_ARCHIVES) and (not title or kind.startswith(_MODEL_PACK))
        packed = archive or annotations.get(_UNPACK) == "true"
        if not packed and not title:
            raise FetchError(f"{name}: a layer of type {kind} has no title, and is no archive that is known here")
        return cls(digest, size, kind, title, packed)

    def file(self, name: str, registry: Registry, asking: Asking) -> File:
        key = f"blobs/{self.digest.kind}:{self.digest.value}"
        return File(name, Promise(self.size, self.digest), Remote(asking.transport, registry, key))


async def list_files(source: str, revision: str, asking: Asking) -> Listing:
    registry = Registry(asking.transport, Reference.parse(source.removeprefix("oci://")))
    manifest, digest = await asking.lines.patiently(partial(_manifest, registry))
    listed = manifest.get("layers") or manifest.get("blobs") or []
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise FetchError(f"{registry.name} has no layers")
    layers = [_Layer.of(registry.name, each) for each in listed]
    titled = {layer.title: layer for layer in layers if not layer.packed}
    names = asking.wish.choose(sorted(titled))
    return Listing(
        f"{digest.kind}:{digest.value}",
        [titled[name].file(name, registry, asking) for name in names],
        [name for name in titled if name not in names],
        [layer.file(layer.digest.value, registry, asking) for layer in layers if layer.packed],
    )


async def _manifest(registry: Registry) -> tuple[Mapping[str, Any], Digest]:
    """Of the image, and the digest of what the source names, which may be an index."""
    manifest, digest = await registry.manifest(registry.version)
    if "manifests" not in manifest:
        return manifest, digest
    chosen = _of_index(manifest["manifests"])
    if chosen is None:
        raise FetchError(f"{registry.name} is an index without an image")
    image, _ = await registry.manifest(chosen)
    return image, digest


def _of_index(manifests: object) -> str | None:
    """The digest of the first image: the weights are the same for every platform. Attestations have none."""
    for each in manifests if isinstance(manifests, list) else []:
        if not isinstance(each, dict) or Digest.parse(each.get("digest")) is None:
            continue
        platform = each.get("platform")
        if not isinstance(platform, dict) or platform.get("os") != "unknown":
            return str(each["digest"])
    return None
