"""The file of API keys: who has one, and what it is good for.

Whatever is wrong with it refuses the whole file. A key that is left out for a misspelled field would lock somebody out,
and a limit that is left out would let somebody in. No message repeats what stands in the file: it may be a key.
"""

import hashlib
import hmac
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.types import FailFast
from pydantic_core import ErrorDetails

from headwater.keys import LEAST_LENGTH, KeysFileError, checked_name
from headwater.validation import allowed, field_path
from headwater_router.files import IrregularFileError, read_file

MOST_BYTES: Final = 2 * 2**20
MOST_KEYS: Final = 10_000
"""To read so many takes a second of a thread, in which the loop stands still for 0.07 s at most."""
LONGEST_KEY: Final = 512
"""Characters. What a client sends beyond is not even hashed."""
_MOST_MODELS: Final = 1000
_MOST: Final = 1_000_000
"""Of a limit: more is no limit."""
_SALT_LENGTH: Final = 32
"""Hex digits."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as it is checked. Of the key itself nothing is kept but its hash."""

    name: str
    digest: bytes = b""
    models: frozenset[str] = frozenset()
    """That it may use, by their whole names."""
    prefixes: tuple[str, ...] = ()
    """What the names of further ones begin with; an empty one is the beginning of all."""
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    cache_salt: str | None = None
    disabled: bool = False

    def may_use(self, model: str) -> bool:
        return model in self.models or model.startswith(self.prefixes)


def read_keys(path: Path) -> list[Key]:
    """At least one. Raises KeysFileError."""
    try:
        return [_key(entry) for entry in _File.model_validate(_load(_bytes(path))).keys]
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise KeysFileError(f"{path}: {_sentence(error.errors(include_url=False, include_input=False)[0])}") from None
    except KeysFileError as error:
        raise KeysFileError(f"{path}: {error}") from None


def stamp(path: Path) -> tuple[int, int, int, int] | None:
    """Another one after each change. It follows links: a mounted Secret changes by one that is swapped."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the last change of rights, too: a file that could not be read may be readable now.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


# From bytes to plain data


class _Loader(yaml.CSafeLoader):
    """YAML in which each thing stands where it is, and once.

    An alias may make a gigabyte of a hundred bytes, and of two fields of one name YAML keeps the second silently.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.constructed_objects or node in self.recursive_objects:
            raise _problem("aliases are not allowed", node)
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(names) < len(node.value) or "<<" in names:
            raise _problem("names of fields must be plain text", node)
        if len(set(names)) < len(names):
            raise _problem("a field is given twice", node)
        return super().construct_mapping(node, deep)


class _RefusedError(yaml.MarkedYAMLError):
    """By the loader above."""


def _problem(text: str, node: yaml.Node) -> _RefusedError:
    return _RefusedError(None, None, text, node.start_mark)


def _bytes(path: Path) -> bytes:
    try:
        content = read_file(path, MOST_BYTES + 1)
    except IrregularFileError:
        raise KeysFileError("is not a file") from None
    if len(content) > MOST_BYTES:
        raise KeysFileError(f"is larger than {MOST_BYTES // 2**20} MiB")
    return content


def _load(content: bytes) -> Any:
    try:
        loaded = yaml.load(content, _Loader)
    except (_RefusedError, yaml.scanner.ScannerError, yaml.parser.ParserError, yaml.composer.ComposerError) as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise KeysFileError(f"not YAML that can be read here{line}: {error.problem}") from None
    except Exception:
        # For what does not fit its tag, as in `!!bool maybe`, the library raises whatever its own code ran into, and
        # some of it repeats what it read.
        raise KeysFileError("not YAML that can be read here") from None
    if loaded is None:
        raise KeysFileError("is empty; it must have a list `keys`")
    return loaded


# From plain data to keys


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


def _checked_key(key: str) -> str:
    if not LEAST_LENGTH <= len(key) <= LONGEST_KEY or not all("!" <= each <= "~" for each in key):
        raise ValueError(f"must be {LEAST_LENGTH} to {LONGEST_KEY} ASCII characters without spaces")
    return key


def _checked_pattern(model: str) -> str:
    if not model or "*" in model[:-1]:
        raise ValueError("must be names of models, in which `*` may stand only at the end")
    return model


class _Entry(_Strict):
    name: Annotated[str, AfterValidator(checked_name)]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-fA-F]{64}$")] | None = None
    key: Annotated[str, AfterValidator(_checked_key)] | None = None
    models: Annotated[list[Annotated[str, AfterValidator(_checked_pattern)]], Field(max_length=_MOST_MODELS)] = ["*"]
    requests_per_minute: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    cache_salt: Literal["own", "none"] = "none"
    disabled: bool = False

    @model_validator(mode="after")
    def _one_secret(self) -> "_Entry":
        if (self.hash is None) == (self.key is None):
            raise ValueError("must have one of `hash` and `key`")
        return self


class _File(_Strict):
    keys: Annotated[list[_Entry], FailFast(), Field(min_length=1, max_length=MOST_KEYS)]

    @model_validator(mode="after")
    def _each_once(self) -> "_File":
        names: set[str] = set()
        digests: set[bytes] = set()
        for entry in self.keys:
            if entry.name in names:
                raise ValueError(f"there are two keys of the name {entry.name!r}")
            names.add(entry.name)
            if (digest := _digest(entry)) in digests:
                raise ValueError(f"the key of {entry.name!r} is that of another name, too")
            digests.add(digest)
        return self


def _digest(entry: _Entry) -> bytes:
    if entry.key is not None:
        return hashlib.sha256(entry.key.encode()).digest()
    assert entry.hash is not None
    return bytes.fromhex(entry.hash.partition(":")[2])


def _key(entry: _Entry) -> Key:
    digest = _digest(entry)
    return Key(
        entry.name,
        digest,
        frozenset(model for model in entry.models if not model.endswith("*")),
        tuple(model[:-1] for model in entry.models if model.endswith("*")),
        entry.requests_per_minute,
        entry.max_concurrent,
        _salt(entry.name, digest) if entry.cache_salt == "own" else None,
        entry.disabled,
    )


def _salt(name: str, digest: bytes) -> str:
    """The same in all routers. Engines see it, and can tell neither the key from it nor its hash."""
    return hmac.digest(digest, f"cache_salt of {name}".encode(), "sha256").hex()[:_SALT_LENGTH]


def _sentence(detail: ErrorDetails) -> str:
    where = field_path(detail["loc"])
    match detail["type"]:
        case "missing":
            text = "is required"
        case "extra_forbidden":
            # The name is not repeated either: with a space forgotten behind the colon it holds the value.
            where, text = field_path(detail["loc"][:-1]), "has an unknown field"
        case "value_error":
            text = str(detail["ctx"]["error"])
        case "string_pattern_mismatch":
            text = "must be `sha256:` and 64 hex digits"
        case "model_type":
            text = "must have fields, such as `name: team-a`" if where else "must have a list `keys`"
        case "too_short":
            text = "must have at least one"
        case _:
            text = allowed(detail)
    return f"{where}: {text}" if where else text
