"""Archives as images have them for layers."""

import io
import tarfile
from collections.abc import Mapping

TAR = {"mediaType": "application/vnd.oci.image.layer.v1.tar"}
Member = bytes | tarfile.TarInfo


def archive(members: Mapping[str, Member], mode: str = "w:gz") -> bytes:
    """Of plain files, by their content, and of what else there is."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, given in members.items():
            member = tarfile.TarInfo(name) if isinstance(given, bytes) else given
            member.name = name
            data = given if isinstance(given, bytes) else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def link(target: str, *, hard: bool = False) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), target
    return member


def folder() -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type = tarfile.DIRTYPE
    return member
