"""A form (multipart/form-data), of which the router reads which model it names.

The model that a key is checked for must be the one that the engine reads. Libraries for forms forgive much, and each
forgives something else: names without quotes, lines that end by half, whatever stands before the first boundary. So a
form is taken only if it is by the book (RFC 2046, RFC 7578) and has nothing in it that two readers could read in two
ways; clients write such forms. The rest is refused, and what is taken goes to the engine as it came.

A library would say what is in a form, not where, and forgives. Here each byte is looked at by `find` alone, and parts
and their headers are few.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from headwater.http.headers import Headers
from headwater.openai.errors import BadRequestError

_MOST_PARTS: Final = 128
_MOST_HEADERS: Final = 8
_LONGEST_HEAD: Final = 4096
_LONGEST_MODEL: Final = 512

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CHARSET: Final = rb"(?:[ \t]*;[ \t]*charset=\"?utf-8\"?)?"
_form_type: Final = re.compile(
    rb"multipart/form-data" + _CHARSET + rb"[ \t]*;[ \t]*boundary="
    rb"(?:\"(?P<quoted>[!#-\[\]-~ ]{0,69}[!#-\[\]-~])\"|(?P<bare>[!#-+\--:<-\[\]-~]{1,70}))" + _CHARSET + rb"[ \t]*",
    re.IGNORECASE,
).fullmatch
_header: Final = re.compile(rb"(?P<name>" + _TOKEN + rb"):[ \t]*(?P<value>[^\r\n\0]*)").fullmatch
# A quote behind a backslash ends the text for some and not for others.
_PARAMETER: Final = rb"[ \t]*;[ \t]*(" + _TOKEN + rb")=(?:\"((?:[^\"\\]|\\[^\"])*+)\"|(" + _TOKEN + rb"))"
_disposition: Final = re.compile(rb"form-data(?P<parameters>(?:" + _PARAMETER + rb")*+)[ \t]*", re.IGNORECASE).fullmatch
_parameters: Final = re.compile(_PARAMETER).findall
_NO_CODING: Final = (b"7bit", b"8bit", b"binary")


@dataclass(slots=True, frozen=True)
class FormBody:
    boundary: bytes
    model: str | None = None
    start: int = 0
    """Where the model's name stands; where a part with it may be put, if there is none."""
    end: int = 0

    def with_model(self, body: bytes, name: str) -> bytes:
        """The form with this model in the place of its own, or of none. All else stays as it is."""
        value = name.encode()
        if self.model is None:
            value = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (self.boundary, value)
        return b"".join((memoryview(body)[: self.start], value, memoryview(body)[self.end :]))


def read_form(headers: Headers, body: bytes) -> FormBody:
    """`headers`: of the request. Raises BadRequestError."""
    types = [value for name, value in headers if name == b"content-type"]
    kind = _form_type(types[0]) if len(types) == 1 else None
    if kind is None:
        _refuse("its content-type must be multipart/form-data, with a boundary")
    boundary = kind["quoted"] or kind["bare"]
    found = [(start, end) for head, start, end in _parts(body, boundary) if _names_model(head)]
    if len(found) > 1:
        raise BadRequestError("A form must have one `model`, and this has several.", param="model", code="invalid_form")
    if not found:
        return FormBody(boundary)
    [(start, end)] = found
    return FormBody(boundary, _model(body[start : min(end, start + 4 * _LONGEST_MODEL + 1)]), start, end)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The head of each part, and from where to where its value goes. Raises BadRequestError."""
    mark = b"--" + boundary
    if not body.startswith(mark):
        _refuse("it must begin with its boundary")
    at = len(mark)
    for _ in range(_MOST_PARTS):
        if body[at : at + 2] != b"\r\n":
            _refuse("its boundary stands in a line of its own")
        start = body.find(b"\r\n\r\n", at, at + _LONGEST_HEAD)
        if start < 0:
            _refuse(f"a part needs a head, of at most {_LONGEST_HEAD} bytes")
        head, start = body[at + 2 : start], start + 4
        # Wherever it stands, in a head or within a line: for some reader that is a boundary.
        following = body.find(mark, at)
        end = following - 2
        if following < 0 or end < start or body[end:following] != b"\r\n":
            _refuse("its boundary stands in a line of its own behind each part")
        yield head, start, end
        at = following + len(mark)
        if body[at : at + 2] == b"--":
            if body[at + 2 :] not in (b"", b"\r\n"):
                _refuse("it goes on behind its end")
            return
    _refuse(f"it has more than {_MOST_PARTS} parts")


def _names_model(head: bytes) -> bool:
    """Whether a part is the model. Raises BadRequestError."""
    headers = [_header(line) for line in head.split(b"\r\n", _MOST_HEADERS)]
    if len(headers) > _MOST_HEADERS:
        _refuse(f"a part has more than {_MOST_HEADERS} headers")
    disposition = None
    for header in headers:
        if header is None:
            _refuse("a part's headers are lines of `name: value`")
        match header["name"].lower():
            case b"content-disposition" if disposition is None and (read := _disposition(header["value"])):
                disposition = read
            case b"content-disposition":
                _refuse("each part has one content-disposition, form-data, without quotes in its quoted values")
            case b"content-transfer-encoding" if header["value"].strip().lower() not in _NO_CODING:
                _refuse("its parts come as they are, in no transfer encoding")
    if disposition is None:
        _refuse("each part has a content-disposition")
    names: list[bytes] = []
    is_file = False
    for parameter, quoted, bare in _parameters(disposition["parameters"]):
        match parameter.lower():
            case b"name":
                names.append(quoted or bare)
            case b"filename":
                is_file = True
            case extended if extended.startswith(b"name*"):
                _refuse("the name of a part is its `name`")
    if len(names) != 1 or b"\\" in names[0] or b"%" in names[0]:
        _refuse("each part has one name, without escapes")
    if names[0] == b"model" and is_file:
        _refuse("its `model` is a text, and no file")
    return names[0] == b"model"


def _model(value: bytes) -> str:
    try:
        name = value.decode()
    except UnicodeDecodeError:
        name = ""
    if not 0 < len(name) <= _LONGEST_MODEL or not name.isprintable():
        raise BadRequestError(
            f"`model` must be a name of 1 to {_LONGEST_MODEL} printable characters.", param="model", code="invalid_form"
        )
    return name


def _refuse(reason: str) -> NoReturn:
    raise BadRequestError(f"The form is not one that all servers read alike: {reason}.", code="invalid_form")
