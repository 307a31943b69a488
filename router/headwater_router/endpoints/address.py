"""What may stand where an endpoint's address is asked for.

Everything that is let through here can be connected to, or fail to in a way that is said: an odd host or port must not
surface in the middle of a request. What is refused is told without credentials that may stand in it.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_LONGEST: Final = 2048
_SHOWN: Final = 80
_PORTS: Final = {"http": 80, "https": 443}
_AUTHORITY: Final = r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/?#@]+))(?::(?P<port>[0-9]{1,5}))?"
_URL: Final = re.compile(rf"(?P<scheme>https?)://{_AUTHORITY}(?P<path>(?:/[\w.~!$&'()*+;=:%-]+)*)/*", re.ASCII)
_EVENTS: Final = re.compile(rf"tcp://{_AUTHORITY}", re.ASCII)
_SOCKET: Final = re.compile(r"ipc:///[^\x00-\x1f\x7f*]{1,106}")
_NAME: Final = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(?:\.(?!-)[\w-]{1,63}(?<!-))*\.?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


class EndpointError(ValueError):
    """An endpoint is not described right; the message says what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint listens."""

    tls: bool
    host: str
    """A name in lower case, or an IP address without brackets."""
    port: int
    path: str = ""
    """What to put before each path; it begins with a slash and ends without one."""

    @property
    def authority(self) -> str:
        """As in a URL and in the header `host`: without the port where it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The same for all ways to write it."""
        return f"http{'s' * self.tls}://{self.authority}{self.path}"


def read_url(text: str) -> Address:
    """Raises EndpointError."""
    refuse_credentials(text)
    match = _URL.fullmatch(text) if len(text) <= _LONGEST else None
    host = _host(match) if match else None
    if match is None or host is None:
        raise EndpointError(
            f"endpoint: url must be http://HOST[:PORT][/PATH] or https://..., found {shown(text)}{_meant(text)}"
        )
    if match["path"].endswith("/v1"):
        raise EndpointError(f"endpoint {shown(text)}: leave out /v1: each request brings it")
    port = int(match["port"] or _PORTS[match["scheme"]])
    _check_port(text, port)
    return Address(match["scheme"] == "https", host, port, match["path"])


def _meant(text: str) -> str:
    """A question, where somebody may have forgotten the scheme."""
    with_scheme = f"http://{text}"
    return f"; did you mean {shown(with_scheme)}?" if "://" not in text and _URL.fullmatch(with_scheme) else ""


def refuse_credentials(url: str) -> None:
    """They would be in logs, in metrics and on the command line. Raises EndpointError, which does not repeat them."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise EndpointError(
            f"endpoint {shown(url)}: the url must hold no credentials; api_key_env= or api_key_file= say where a key is"
        )


def read_events(name: str, text: str) -> str:
    """An address of KV events, in the setting of this name. Raises EndpointError."""
    if _SOCKET.fullmatch(text):
        return text
    match = _EVENTS.fullmatch(text) if len(text) <= _LONGEST else None
    host = _host(match) if match else None
    if match is None or host is None or match["port"] is None:
        raise EndpointError(f"endpoint: {name} must be tcp://HOST:PORT or ipc:///PATH, found {shown(text)}")
    _check_port(text, int(match["port"]))
    return f"tcp://[{host}]:{int(match['port'])}" if ":" in host else f"tcp://{host}:{int(match['port'])}"


def shown(text: str) -> str:
    """What a message may repeat of an address: nothing that could be a password, and no more than a line."""
    if "@" in text:
        scheme, separator, _ = text.partition("://")
        text = f"{scheme if separator else ''}{separator}...@{text.rpartition('@')[2]}"
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _host(match: re.Match[str]) -> str | None:
    """None: it is neither an address nor a name."""
    try:
        if match["six"] is not None:
            return str(ipaddress.IPv6Address(match["six"]))
        # What ends in a number is an address, or what systems take for one in a way that nobody means.
        if _NUMBER.fullmatch(match["host"].rpartition(".")[2]):
            return str(ipaddress.IPv4Address(match["host"]))
    except ipaddress.AddressValueError:
        return None
    return match["host"].lower() if len(match["host"]) <= 253 and _NAME.fullmatch(match["host"]) else None


def _check_port(text: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise EndpointError(f"endpoint {shown(text)}: the port must be 1 to 65535, found {port}")
