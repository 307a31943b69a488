"""Adapters of engines that run: loaded and unloaded as the resource says, without a restart where the server can.

Nothing is remembered of what was loaded once. Each time the engine is asked what it has, what differs is changed, and
it is asked again; so a container that was restarted gets its adapters back, and none is called loaded that is not.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx

from headwater.backends.base import Backend
from headwater.resource import ModelDeployment
from headwater_operator.asking import EndlessError, ask
from headwater_operator.render.storage import MODELS

_LIST_SECONDS: Final = 5.0
_LOAD_SECONDS: Final = 120.0
"""For one adapter: the engine may have to download it."""
_ROUND_SECONDS: Final = 120.0
"""After these nothing further is begun: others wait for their turn, and the next round goes on."""
_LARGEST: Final = 1024 * 1024
"""Bytes of an answer; a list of a thousand adapters has a third of that."""
_LONGEST_MESSAGE: Final = 300


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One adapter in one engine."""

    name: str
    loaded: bool
    message: str = ""
    """Why it is not loaded."""
    under_way: bool = False
    """It is being loaded, or is yet to be."""


Change = tuple[Literal["unload", "load"], str]
"""By name."""


# What is wanted


@dataclass(frozen=True, slots=True)
class Wanted:
    paths: Mapping[str, str]
    """By adapter, what the engine is told to load."""
    refused: Mapping[str, str]
    """By adapter, why no engine of the deployment can load it."""


def wanted(deployment: ModelDeployment, backend: Backend) -> Wanted:
    """The adapters that the resource names."""
    paths: dict[str, str] = {}
    refused: dict[str, str] = {}
    for adapter in deployment.spec.adapters:
        path = _path(adapter.source, deployment.spec.model.source)
        if backend.loads_adapters == "never":
            refused[adapter.name] = f"the {backend.name} backend knows no adapters"
        elif path is None:
            refused[adapter.name] = (
                f"{adapter.source} is not within reach of the pods: allowed are hf://, file:// and a path on the claim "
                "that spec.model.source names"
            )
        else:
            paths[adapter.name] = path
    return Wanted(paths, refused)


def _path(source: str, model: str) -> str | None:
    """How an engine is told where an adapter is: a name on the hub, or a path in the pod."""
    scheme, _, rest = source.partition("://")
    if scheme in ("hf", "file"):
        return rest
    claim, _, path = rest.partition("/")
    if scheme == "pvc" and f"{model}/".startswith(f"pvc://{claim}/"):
        return f"{MODELS}/{path}".rstrip("/")
    return None


def plan(wanted: Mapping[str, str], loaded: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What to unload and what to load, both by name. `loaded`: by name, where each came from; "" where not known."""
    differing = {name for name in wanted.keys() & loaded.keys() if _differs(wanted[name], loaded[name])}
    unload = [name for name in loaded if name not in wanted or name in differing]
    load = [name for name in wanted if name not in loaded or name in differing]
    return unload, load


def _differs(wanted: str, found: str) -> bool:
    # A server that reports where the hub's files lie on its disk must not be made to load them again and again.
    return bool(found) and found != wanted and found.startswith("/") == wanted.startswith("/")


# What an engine has


class _RefusedError(Exception):
    """The engine did not do it; the message says why."""


def outset(wanted: Wanted) -> list[AdapterState]:
    """What can be said before the engine has said anything."""
    return _states(wanted, {}, {}, wanted.paths.keys())


async def sync_adapters(
    backend: Backend,
    base_url: str,
    wanted: Wanted,
    client: httpx.AsyncClient,
    key: str | None = None,
    seen: Callable[[Sequence[AdapterState]], None] = lambda states: None,
    tries: Counter[Change] | None = None,
) -> list[AdapterState]:
    """Make one engine have what is wanted of it, and say what it has then. Never raises for what an engine does.

    It may take some minutes, and may not get done with all of it.

    `key`: what an engine that was started with an admin key wants to see before it changes anything.
    `seen`: is told how far it is. `tries`: of earlier rounds; what was tried least comes first.
    """
    try:
        loaded = await _loaded(backend, base_url, client)
    except _RefusedError as error:
        return _states(wanted, {}, dict.fromkeys(wanted.paths, str(error)))
    if backend.loads_adapters == "start":
        # It lists none; but it was told of them when it started, and would not have without them.
        return _states(wanted, wanted.paths, {})
    unload, load = plan(wanted.paths, loaded)
    if not unload and not load:
        return _states(wanted, loaded, {})
    tries = Counter() if tries is None else tries
    changes: list[Change] = [*(("unload", name) for name in unload), *(("load", name) for name in load)]
    changes.sort(key=tries.__getitem__)
    failures: dict[str, str] = {}
    until = asyncio.get_running_loop().time() + _ROUND_SECONDS
    # One after the other: servers load under a lock, and what is unloaded first makes room.
    while changes and asyncio.get_running_loop().time() < until:
        what, name = changes[0]
        seen(_states(wanted, loaded, failures, load, name))
        tries[changes[0]] += 1
        call = backend.unload_adapter(name) if what == "unload" else backend.load_adapter(name, wanted.paths[name])
        failures |= await _change(name, call, base_url, client, key)
        del changes[0]
    left = {name for what, name in changes if what == "load"} - failures.keys()
    try:
        loaded = await _loaded(backend, base_url, client)
    except _RefusedError as error:
        return _states(wanted, {}, dict.fromkeys(wanted.paths, str(error)) | failures)
    return _states(wanted, loaded, failures, left)


def _states(
    wanted: Wanted,
    loaded: Mapping[str, str],
    failures: Mapping[str, str],
    coming: Collection[str] = (),
    loading: str | None = None,
) -> list[AdapterState]:
    """The engine's own list decides. A call that timed out may have worked, and one that worked may have not.

    `coming`: what is yet to be loaded, or to be listed; `loading`: which of them right now.
    """
    states = [AdapterState(name, loaded=False, message=message) for name, message in wanted.refused.items()]
    for name, path in wanted.paths.items():
        if name in loaded and not _differs(path, loaded[name]):
            states.append(AdapterState(name, loaded=True))
        elif name in coming and name not in failures:
            message = f"loading adapter {name}" if name == loading else "waits to be loaded"
            states.append(AdapterState(name, loaded=False, message=message, under_way=True))
        else:
            message = failures.get(name, "the engine took it, but does not list it")
            states.append(AdapterState(name, loaded=False, message=message))
    return sorted(states, key=lambda state: state.name)


async def _loaded(backend: Backend, base_url: str, client: httpx.AsyncClient) -> dict[str, str]:
    """By name, where each adapter came from, as far as the server says."""
    models = await _ask(client, "GET", f"{base_url}/v1/models", None, _LIST_SECONDS)
    cards = models.get("data") if isinstance(models, dict) else None
    if not isinstance(cards, list):
        raise _RefusedError("the engine's list of models is not one")
    names = backend.adapters_of(models)
    return {card["id"]: str(card.get("root") or "") for card in cards if card.get("id") in names}


async def _change(
    name: str, call: tuple[str, str, Mapping[str, str]], base_url: str, client: httpx.AsyncClient, key: str | None
) -> dict[str, str]:
    """Why it failed, by name; empty if it did not."""
    method, path, body = call
    try:
        await _ask(client, method, base_url + path, body, _LOAD_SECONDS, key)
    except _RefusedError as error:
        return {name: str(error)}
    return {}


async def _ask(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: Mapping[str, str] | None,
    seconds: float,
    key: str | None = None,
) -> Any:
    """The JSON of a good answer. Raises _RefusedError."""
    headers = {"authorization": f"Bearer {key}"} if key is not None else None
    try:
        told = await ask(client, url, seconds=seconds, most=_LARGEST, method=method, json=body, headers=headers)
    except EndlessError:
        raise _RefusedError("the engine's answer has no end") from None
    except (TimeoutError, httpx.TimeoutException):
        raise _RefusedError(f"the engine did not answer within {seconds:g} s") from None
    except httpx.HTTPError as error:
        raise _RefusedError(f"the engine cannot be reached: {error or type(error).__name__}") from None
    try:
        content = json.loads(told.body)
    except (ValueError, RecursionError):
        content = None
    if told.is_success:
        return content
    text = told.body.decode(errors="replace")
    raise _RefusedError(f"the engine answered {told.status}: {_reason(content, text)}")


def _reason(content: Any, text: str) -> str:
    """The sentence in an error's body; servers nest it differently."""
    while isinstance(content, (dict, list)) and content:
        if isinstance(content, list):  # FastAPI's, one for each field
            content = content[0]
        else:
            known = (content[key] for key in ("error", "message", "error_message", "detail", "msg") if key in content)
            content = next(known, None)
    # What is no sentence, such as a page of HTML, is better than nothing, but is one line.
    reason = " ".join((content if isinstance(content, str) else text).split()) or "no reason given"
    return reason if len(reason) <= _LONGEST_MESSAGE else reason[:_LONGEST_MESSAGE] + "..."


# What the status shows


def summarize(replicas: Sequence[Sequence[AdapterState]]) -> list[dict[str, Any]]:
    """For `status.adapters`: of each adapter, in how many replicas it is loaded, and one reason where it is not."""
    shown: dict[str, dict[str, Any]] = {}
    for state in (state for states in replicas for state in states):
        entry = shown.setdefault(state.name, {"name": state.name, "loaded": 0, "replicas": 0})
        entry["replicas"] += 1
        entry["loaded"] += state.loaded
        if state.message:
            entry.setdefault("message", state.message)
    return [shown[name] for name in sorted(shown)]
