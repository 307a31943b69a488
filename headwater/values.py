"""The kinds of values that fields of a resource hold, each with what must hold of it.

A rule is written once for both who check it: here in Python, for `headwater up` and the operator, and as an expression
in CEL that goes into the CRD, for the API server. Both answer with the same message.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from headwater.quantities import AMOUNT
from headwater.validation import found

RULES: Final = "x-kubernetes-validations"
"""Where a schema of Kubernetes keeps its rules."""

MAX_NAME: Final = 63 - len("-0123456789-01234")
"""Kubernetes names and label values end at 63 characters; ours add a revision's hash and a pod's ending."""
MAX_REPLICAS: Final = 10_000
"""More is a slip of the finger."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold of a value or of several fields together."""

    message: str
    """To follow the path of the field: `must be ...`."""
    cel: str
    field: str = ""
    """To blame, as in YAML, below what the rule is about."""
    holds: Callable[[Any], bool] | None = None
    """None: the rule is about what was before, which only the API server knows."""
    reason: Literal["FieldValueInvalid", "FieldValueForbidden"] = "FieldValueInvalid"

    def broken(self, *wrong: object) -> PydanticCustomError:
        return broken(f"{self.message}; found {found(wrong[0])}" if wrong else self.message, self.field)

    def schema(self) -> dict[str, str]:
        """An element of `x-kubernetes-validations`."""
        blamed = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": self.cel, "message": self.message, "reason": self.reason, **blamed}


def broken(message: str, field: str = "") -> PydanticCustomError:
    """A broken rule; `field` is the path, below where it is raised, of the field to blame."""
    return PydanticCustomError("rule", "{message}", {"message": message, "field": field})


# Forms of text. Both kinds of regular expressions must mean the same: no \s, no \S, and ASCII alone.

_BLACK: Final = r"[^\x00-\x20\x7f]"
"""A character that is neither space nor control; without the slash: `_PART`."""
_PART: Final = r"[^\x00-\x20\x7f/]"
_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


class Form:
    """Text that matches a pattern as a whole."""

    def __init__(self, message: str, *patterns: str, longest: int, mistakes: tuple[Rule, ...] = ()) -> None:
        """`mistakes`: rules that the pattern breaks as well, and that say better what to do."""
        self.longest = longest
        self._mistakes: Final = mistakes
        self._pattern: Final = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.ASCII)
        whole = f"^({'|'.join(patterns)})$"
        self.rule: Final = Rule(message, f"self.matches(r'{whole}')", holds=self.fits)

    def fits(self, text: str) -> bool:
        return self._pattern.fullmatch(text) is not None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._check, core_schema.str_schema(strict=True, max_length=self.longest)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        rules = [rule.schema() for rule in (*self._mistakes, self.rule)]
        return {"type": "string", "maxLength": self.longest, RULES: rules}

    def _check(self, text: str) -> str:
        for rule in (*self._mistakes, self.rule):
            if rule.holds and not rule.holds(text):
                raise rule.broken(text)
        return text


_SOURCES: Final = {
    "hf://OWNER/NAME": rf"hf://[\w.-]+/[\w.-]+(/{_PART}+)*",
    "s3://BUCKET/PATH": rf"s3://{_PART}+/{_BLACK}+",
    "oci://REGISTRY/IMAGE": rf"oci://{_PART}+/{_BLACK}+",
    "pvc://CLAIM/PATH": rf"pvc://{_LABEL}(\.{_LABEL})*(/{_BLACK}*)?",
    "file://PATH": rf"file://{_BLACK}.*",
    "package://NAME": r"package://[A-Za-z_][\w.]*",
    "random:CONFIG": rf"random:{_BLACK}+",
}

_REVISION_APART: Final = Rule(
    "put what follows the @ into `revision`: hf:// names a repository",
    r"!self.matches(r'^hf://[^/@]+/[^/@]+@')",
    holds=lambda source: re.match(r"hf://[^/@]+/[^/@]+@", source) is None,
)
_NO_WEB_PAGE: Final = Rule(
    "is a web page: write hf://OWNER/NAME for a model on the hub",
    "!self.matches('^https?://')",
    holds=lambda source: re.match("https?://", source) is None,
)

Source = Annotated[
    str,
    Form(
        f"must be one of {', '.join(_SOURCES)}",
        *_SOURCES.values(),
        longest=1024,
        mistakes=(_REVISION_APART, _NO_WEB_PAGE),
    ),
]
"""Where weights come from: a URL whose scheme says how to get them."""
ServedName = Annotated[str, Form("must be a name without spaces", rf"{_BLACK}+", longest=256)]
Revision = Annotated[str, Form("must be a branch, tag or commit, without spaces", rf"{_BLACK}+", longest=256)]
_PATH_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST: Final = r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|localhost|\[[0-9a-f:]+\]"
_REGISTRY: Final = rf"(?:(?:{_HOST})(?::[0-9]+)?|[A-Za-z0-9-]+:[0-9]+)"
"""A first part without a dot or a port belongs to the path."""
ImageName = Annotated[
    str,
    Form(
        "must be an image such as REGISTRY/NAME:TAG, its path in lowercase letters",
        rf"({_REGISTRY}/)?{_PATH_PART}(/{_PATH_PART})*(:\w[\w.-]*)?(@[a-z0-9+._-]+:[0-9a-f]+)?",
        longest=512,
    ),
]
_DIGEST: Final = "sha256:[0-9a-f]{64}"
ImageTag = Annotated[
    str, Form("must be the tag of an image, such as v0.32.0, or its digest", _DIGEST, r"\w[\w.-]*", longest=128)
]
ObjectName = Annotated[
    str,
    Form(
        "must be the name of an object in Kubernetes: lowercase letters, digits, '-' and '.'",
        rf"{_LABEL}(\.{_LABEL})*",
        longest=253,
    ),
]
NamespaceName = Annotated[str, Form("must be the name of a namespace, or * for all", _LABEL, r"\*", longest=63)]
SecretKeyName = Annotated[
    str, Form("must be a key of a Secret: letters, digits, '-', '_' and '.'", r"[-.\w]+", longest=253)
]
Bytes = Annotated[
    str, Form("must be an amount of bytes such as 50Gi", r"[0-9]+(\.[0-9]+)?([KMGTP]i|[kMGTP])?", longest=32)
]
_VARIABLE: Final = Form(
    "must be variables: letters, digits and '_', not beginning with a digit", r"[A-Za-z_]\w*", longest=256
)


def is_digest(version: str) -> bool:
    """Of an image: what it is, and not what it is called."""
    return re.fullmatch(_DIGEST, version) is not None


# The name of a ModelDeployment. Its rules stand at the root of the CRD, since Kubernetes keeps `metadata` to itself.

_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAME_RULES: Final = (
    Rule(
        f"must be at most {MAX_NAME} characters: Kubernetes ends names at 63, and those of its pods are longer",
        f"size(self.metadata.name) <= {MAX_NAME}",
        "metadata.name",
        lambda name: len(name) <= MAX_NAME,
    ),
    Rule(
        # A Service's name must not begin with a digit.
        "must be lowercase letters, digits and '-', begin with a letter and end with a letter or digit",
        f"self.metadata.name.matches('^{_DNS_LABEL.pattern}$')",
        "metadata.name",
        lambda name: _DNS_LABEL.fullmatch(name) is not None,
    ),
)


def _check_name(name: str) -> str:
    for rule in NAME_RULES:
        if rule.holds and not rule.holds(name):
            raise broken(f"{rule.message}; found {found(name)}")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A DNS label, short enough for the names that are made of it."""


# What holds more than one value


class Distinct:
    """Of a list: no two elements are the same, or have the same `key`. Appliers of the resource share such a list."""

    def __init__(self, key: str = "") -> None:
        self._key: Final = key
        one, other = (f"a.{key}", f"b.{key}") if key else ("a", "b")
        self._rule: Final = Rule("must differ from one another", f"self.all(a, self.exists_one(b, {other} == {one}))")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        kind: JsonSchemaValue = {"x-kubernetes-list-type": "map" if self._key else "set"}
        if self._key:
            kind["x-kubernetes-list-map-keys"] = [self._key]
        return handler(schema) | kind | {RULES: [self._rule.schema()]}

    def _check(self, elements: list[Any]) -> list[Any]:
        names = [getattr(element, self._key) if self._key else element for element in elements]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self._rule.broken(name)
        return elements


class Variables:
    """Of a map: its keys are names of environment variables."""

    _RULE: Final = Rule(_VARIABLE.rule.message, f"self.all(name, {_VARIABLE.rule.cel.replace('self', 'name')})")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {RULES: [self._RULE.schema()]}

    def _check(self, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if not _VARIABLE.fits(name):
                raise self._RULE.broken(name)
        return variables


class Shaped:
    """Of a map that is Kubernetes's own and stays one, as it was written: it has the fields of a model."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model: Final = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _check_and_keep,
            handler.generate_schema(self._model),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


def _check_and_keep(value: Any, check: Callable[[Any], Any]) -> Any:
    check(value)
    return {name: each for name, each in value.items() if each is not None}


class _Amount:
    """Of a resource, as Kubernetes writes it: a number or a text."""

    _FORM: Final = Form(
        "must be an amount such as 2, 500m or 16Gi",
        AMOUNT,
        longest=32,
    )
    _RULE: Final = Rule(_FORM.rule.message, f"type(self) == int ? self >= 0 : {_FORM.rule.cel}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        either: JsonSchemaValue = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
        return {
            "x-kubernetes-int-or-string": True,
            "maxLength": self._FORM.longest,
            RULES: [self._RULE.schema()],
            **either,
        }

    def _check(self, value: Any) -> int | str:
        if (type(value) is int and value >= 0) or (isinstance(value, str) and self._fits(value)):
            return value
        raise self._RULE.broken(value)

    def _fits(self, text: str) -> bool:
        return len(text) <= self._FORM.longest and self._FORM.fits(text)


Amount = Annotated[int | str, _Amount()]


# Durations

_UNITS: Final = {"h": 3600, "m": 60, "s": 1}
DURATION: Final = "([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?"


def read_duration(text: str) -> timedelta | None:
    """None: it is none."""
    if not text or not re.fullmatch(DURATION, text):
        return None
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text)))


def write_duration(duration: timedelta) -> str:
    """In whole seconds: 1h30m."""
    left = int(duration.total_seconds())
    text = ""
    for unit, seconds in _UNITS.items():
        if count := left // seconds:
            text += f"{count}{unit}"
            left -= count * seconds
    return text or "0s"


class Span:
    """A duration within bounds, written as 30s, 5m or 1h30m."""

    _FORM: Final = Rule("must be a duration such as 30s, 5m or 1h30m", f"self != '' && self.matches('^{DURATION}$')")

    def __init__(self, least: str, most: str) -> None:
        low, high = read_duration(least), read_duration(most)
        assert low is not None and high is not None
        self.bounds: Final = Rule(
            f"must be from {least} to {most}",
            f"!self.matches('^{DURATION}$') || self == '' || "
            f"(duration(self) >= duration('{least}') && duration(self) <= duration('{most}'))",
            holds=lambda duration: low <= duration <= high,
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._check,
            serialization=core_schema.plain_serializer_function_ser_schema(write_duration, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        rules = [self._FORM.schema(), self.bounds.schema()]
        return {"type": "string", "maxLength": len(3 * "123456h"), RULES: rules}

    def _check(self, value: Any) -> timedelta:
        duration = value if isinstance(value, timedelta) else None
        if isinstance(value, str):
            duration = read_duration(value)
        if duration is None:
            raise self._FORM.broken(value)
        if self.bounds.holds and not self.bounds.holds(duration):
            raise self.bounds.broken(value)
        return duration


Duration = Annotated[timedelta, Span("0s", "168h")]
