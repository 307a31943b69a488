"""API keys: what they look like, and what stands of them in a file.

Of a key that is made here only the hash is written down. It is plain SHA-256: a key of 256 random bits cannot be found
by trying, however quick one try is, so a slow hash would only cost each request its time.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Final

import yaml

LEAST_LENGTH: Final = 16
"""Characters of a key."""
LONGEST_NAME: Final = 64
_PREFIX: Final = "sk-hw-"
"""Says whose it is, to people and to programs that look for lost secrets."""


class KeysFileError(ValueError):
    """A file of keys cannot be used; the message names it, and never repeats what stands in it."""


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """As it stands in a file."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def checked_name(name: str) -> str:
    """Raises ValueError for what cannot be the name of a key."""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"must be 1 to {LONGEST_NAME} printable characters, without spaces around them")
    return name


def add_to_file(path: Path, entry: dict[str, str]) -> None:
    """At its end, so that comments and order of what is there stay. Makes the file if there is none.

    Raises KeysFileError, and then the file is as it was.
    """
    try:
        text = path.read_text() if path.exists() else "keys:\n"
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise KeysFileError(f"{path}: cannot be read as YAML") from None
    keys = (content.get("keys") or []) if isinstance(content, dict) else None
    if not isinstance(keys, list):
        raise KeysFileError(f"{path}: has no list `keys`")
    if any(isinstance(each, dict) and each.get("name") == entry["name"] for each in keys):
        raise KeysFileError(f"{path}: there is a key of the name {entry['name']!r} already")
    added = _with(text, entry, {**content, "keys": [*keys, entry]})
    if added is None:
        raise KeysFileError(f"{path}: the list `keys` is not at its end, or in one line; add the key by hand")
    try:
        _replace(path, added)
    except OSError as error:
        raise KeysFileError(f"{path}: cannot be written: {error.strerror}") from None


def _with(text: str, entry: dict[str, str], wanted: dict[str, Any]) -> str | None:
    """The text with one more entry, indented as those that are there: the one way that gives what is wanted."""
    lines = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    for indent in ("  ", "", "    "):
        added = text.rstrip("\n") + "\n" + textwrap.indent(lines, indent)
        with contextlib.suppress(yaml.YAMLError):
            if yaml.safe_load(added) == wanted:
                return added
    return None


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a router may read it at this moment. A new file is for its owner's eyes."""
    target = path.resolve()
    number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(number, "w") as file:
            file.write(text)
        if target.exists():
            before = target.stat()
            Path(name).chmod(before.st_mode & 0o777)
            with contextlib.suppress(PermissionError):  # Only root may give a file back to its owner.
                os.chown(name, before.st_uid, before.st_gid)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
