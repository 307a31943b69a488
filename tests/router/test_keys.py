"""Who is let in, who is not, what they are told, and that the keys follow their file."""

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from headwater.keys import KeysFileError, hashed, new_key
from headwater.openai.errors import APIError, AuthenticationError, PermissionDeniedError, RateLimitError
from headwater_router.admission import keys as module
from headwater_router.admission.keys import ANYONE, Admitted, Keys
from headwater_router.gateway.key_metrics import KeyMetrics
from tests.router.gateway import until

CHAT = "/v1/chat/completions"
NOW = 1000.0


class Clients:
    """Of a file of keys, all of which are `NAME` and some more letters."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **limits: dict[str, Any]) -> None:
        entries = [{"name": name, "key": self.key(name), **each} for name, each in limits.items()]
        self.path.write_text(yaml.safe_dump({"keys": entries}))

    def keys(self, **limits: dict[str, Any]) -> Keys:
        self.write(**limits)
        return Keys(self.path)

    @staticmethod
    def key(name: str) -> str:
        return f"{name}-0123456789abcdef"


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(tmp_path / "keys.yaml")


def bearer(name: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"Bearer {Clients.key(name)}".encode()), (b"accept", b"*/*")]


def admit(keys: Keys, headers: list[tuple[bytes, bytes]], now: float = NOW) -> Admitted:
    return keys.admit(CHAT, headers, now)


def refused(keys: Keys, headers: list[tuple[bytes, bytes]], now: float = NOW) -> APIError:
    with pytest.raises(APIError) as error:
        admit(keys, headers, now)
    return error.value


# Who is let in


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a-0123456789abcdef")],
        [(b"authorization", b"bearer  a-0123456789abcdef ")],
        [(b"x-api-key", b"a-0123456789abcdef")],
        [(b"x-api-key", b"a-0123456789abcdef"), (b"authorization", b"Bearer a-0123456789abcdef")],
    ],
)
def test_a_key_is_known_in_either_header(headers, clients: Clients) -> None:
    admitted = admit(clients.keys(a={}, b={}), headers)
    assert admitted.name == "a"
    assert admitted.headers == {}


@pytest.mark.parametrize(
    ("headers", "message", "reason"),
    [
        ([], "An API key is needed", "missing"),
        ([(b"authorization", b"Bearer ")], "An API key is needed", "missing"),
        ([(b"authorization", b"Bearer")], "An API key is needed", "missing"),
        ([(b"x-api-key", b"")], "An API key is needed", "missing"),
        ([(b"authorization", b"Bearer a-0123456789abcdeg")], "not known", "unknown"),
        ([(b"authorization", b"Bearer a-0123456789abcdef a")], "not known", "unknown"),
        ([(b"authorization", b"Bearer A-0123456789abcdef")], "not known", "unknown"),
        ([(b"authorization", b"Bearer \xff\xfe\x00\xc3\xa4")], "not known", "unknown"),
        ([(b"authorization", b"Basic YTpi")], "not known", "unknown"),
        ([(b"authorization", b"a-0123456789abcdef")], "not known", "unknown"),
        ([(b"authorization", b"Basic YTpi"), (b"x-api-key", b"a-0123456789abcdef")], "not known", "unknown"),
        ([(b"authorization", b"Bearer " + hashed("a-0123456789abcdef").encode())], "not known", "unknown"),
        ([(b"authorization", b"Bearer off-0123456789abcdef")], "is disabled", "disabled"),
        (
            [(b"authorization", b"Bearer a-0123456789abcdef"), (b"x-api-key", b"b-0123456789abcdef")],
            "two different", "ambiguous",
        ),
        (
            [(b"authorization", b"Bearer a-0123456789abcdef"), (b"authorization", b"Bearer b-0123456789abcdef")],
            "two different", "ambiguous",
        ),
    ],
)  # fmt: skip
def test_others_are_told_to_bring_a_key(headers, message: str, reason: str, clients: Clients) -> None:
    keys = clients.keys(a={}, b={}, off={"disabled": True})
    error = refused(keys, headers)
    assert isinstance(error, AuthenticationError)
    assert error.status == 401
    assert message in error.message
    assert error.body()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": None, "code": "invalid_api_key",
    }  # fmt: skip
    assert error.headers() == {"www-authenticate": 'Bearer realm="headwater"'}
    assert {each.value: count for each, count in keys.failures.items()} == {reason: 1}
    assert "0123456789" not in error.message


def test_health_needs_no_key_and_reaches_no_model(clients: Clients) -> None:
    keys = clients.keys(a={})
    admitted = keys.admit("/health", [], NOW)
    assert not admitted.may_use("m")
    with pytest.raises(PermissionDeniedError):
        admitted.require("m")
    admitted.release()
    for path in ("/metrics", "/v1/models", "/health/", "//health", "/nowhere"):
        with pytest.raises(AuthenticationError):
            keys.admit(path, [], NOW)


def test_without_keys_everybody_may_use_everything() -> None:
    assert ANYONE.may_use("anything")
    assert ANYONE.usable(["a", "b"]) == ["a", "b"]
    assert ANYONE.cache_salt("x") == "x"
    ANYONE.release()


def test_every_key_is_compared_in_constant_time_and_only_by_hash(clients: Clients, monkeypatch) -> None:
    """Whoever comes, known or not: one hash of what was sent, one comparison, and none of the key itself."""
    keys = clients.keys(a={}, off={"disabled": True})
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    sent = [Clients.key("a"), Clients.key("off"), Clients.key("a")[:-1], "x", "x" * 500]
    for each in sent:
        try:
            admit(keys, [(b"x-api-key", each.encode())]).release()
        except AuthenticationError:
            continue
    assert [digest for _, digest in compared] == [hashlib.sha256(each.encode()).digest() for each in sent]
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_what_is_too_long_for_a_key_is_not_even_hashed(clients: Clients, monkeypatch) -> None:
    keys = clients.keys(a={})
    monkeypatch.setattr(module.hashlib, "sha256", lambda data: pytest.fail("was hashed"))
    error = refused(keys, [(b"authorization", b"Bearer " + b"x" * 2**20)])
    assert error.status == 401
    assert len(error.message) < 100
    many = [(b"authorization", b"Bearer %d" % n) for n in range(10_000)]
    assert refused(keys, many).message == "The request has two different API keys; send one."


def test_failed_tries_leave_nothing_behind(clients: Clients) -> None:
    keys = clients.keys(a={"max_concurrent": 1})
    sizes = []
    for n in range(2000):
        refused(keys, [(b"x-api-key", b"%032d" % n)])
        sizes.append((len(keys), len(keys._uses), len(keys.failures)))
    assert set(sizes) == {(1, 1, 1)}
    assert keys.failures["unknown"] == 2000


# Models and salts


def test_a_key_may_use_its_models_only(clients: Clients) -> None:
    keys = clients.keys(a={"models": ["m", "ns/*"]})
    admitted = admit(keys, bearer("a"))
    admitted.require("m")
    admitted.require("ns/x")
    assert admitted.usable(["a", "m", "ns/b", "z"]) == ["m", "ns/b"]
    for model in ("z", "M", "ns", "", "m\n"):
        with pytest.raises(PermissionDeniedError) as error:
            admitted.require(model)
        assert (error.value.status, error.value.code, error.value.param) == (403, "model_not_allowed", "model")


def test_no_model_means_none(clients: Clients) -> None:
    assert not admit(clients.keys(a={"models": []}), bearer("a")).may_use("m")


def test_a_salt_of_its_own_keeps_a_key_apart_whatever_its_clients_send(clients: Clients) -> None:
    keys = clients.keys(a={"cache_salt": "own"}, b={"cache_salt": "own"}, c={})
    a, b, c = (admit(keys, bearer(name)) for name in "abc")
    assert c.cache_salt(None) is None
    assert c.cache_salt("theirs") == "theirs"
    salts = {each.cache_salt(given) for each in (a, b) for given in (None, "x", "y", "", "\ud800", "x" * 10**6)}
    assert len(salts) == 12
    assert all(salt is not None and len(salt) == 32 and int(salt, 16) >= 0 for salt in salts)


# Limits


def test_requests_a_minute_are_limited_and_told(clients: Clients) -> None:
    keys = clients.keys(a={"requests_per_minute": 2}, b={})
    first = admit(keys, bearer("a"))
    assert first.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
    }
    assert admit(keys, bearer("a")).headers["x-ratelimit-remaining-requests"] == "0"
    error = refused(keys, bearer("a"), NOW + 0.5)
    assert isinstance(error, RateLimitError)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59.5s",
        "retry-after": "30",
    }
    admit(keys, bearer("b"))
    assert admit(keys, bearer("a"), NOW + 30).headers["x-ratelimit-remaining-requests"] == "0"


def test_a_refused_request_uses_nothing_up(clients: Clients) -> None:
    keys = clients.keys(a={"requests_per_minute": 1, "max_concurrent": 1})
    running = admit(keys, bearer("a"))
    for n in range(100):
        refused(keys, bearer("a"), NOW + n / 10)
    running.release()
    assert refused(keys, bearer("a"), NOW + 59).headers()["retry-after"] == "1"
    admit(keys, bearer("a"), NOW + 60)


def test_requests_at_once_are_limited(clients: Clients) -> None:
    keys = clients.keys(a={"max_concurrent": 2, "requests_per_minute": 100})
    first, _ = admit(keys, bearer("a")), admit(keys, bearer("a"))
    error = refused(keys, bearer("a"))
    assert error.status == 429
    assert error.message == "This API key may have 2 requests at once."
    assert error.headers()["retry-after"] == "1"
    assert error.headers()["x-ratelimit-remaining-requests"] == "98"
    first.release()
    first.release()
    admit(keys, bearer("a"))
    assert refused(keys, bearer("a")).status == 429


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.booleans()), max_size=60))
def test_each_place_is_given_back_once(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever begins, ends, and ends again: as many run as were begun and not ended, and never too many."""
    keys = _keys_of("a", "b", max_concurrent=3)
    begun: dict[str, list[Admitted]] = {"a": [], "b": []}
    ended: dict[str, list[Admitted]] = {"a": [], "b": []}
    for name, which, again in steps:
        if which < 3:
            if len(begun[name]) == 3:
                assert refused(keys, bearer(name)).status == 429
            else:
                begun[name].append(admit(keys, bearer(name)))
        elif again and ended[name]:
            ended[name][-1].release()
        elif begun[name]:
            begun[name][0].release()
            ended[name].append(begun[name].pop(0))
        assert {key.name: use.running for key, use in keys} == {each: len(begun[each]) for each in "ab"}


def _keys_of(*names: str, **limits: Any) -> Keys:
    """Without a file."""
    keys = object.__new__(Keys)
    keys.failures, keys._uses = module.Counter(), {}
    keys._install(
        [
            module.Key(name, hashlib.sha256(Clients.key(name).encode()).digest(), prefixes=("",), **limits)
            for name in names
        ]
    )
    return keys


# The file changes


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda text, **_: lines.append(text), raising=False)
    return lines


async def test_keys_are_those_of_the_file_as_it_is_now(clients: Clients) -> None:
    keys = clients.keys(a={}, b={})
    clients.write(b={"models": ["m"]}, c={})
    assert admit(keys, bearer("a")).name == "a"
    await keys.look()
    assert refused(keys, bearer("a")).status == 401
    assert not admit(keys, bearer("b")).may_use("x")
    assert admit(keys, bearer("c")).name == "c"


async def test_a_change_is_noticed_by_itself(clients: Clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    keys = clients.keys(a={})
    following = asyncio.create_task(keys.follow())
    clients.write(b={})
    await until(lambda: {key.name for key, _ in keys} == {"b"})
    following.cancel()


async def test_what_is_used_and_what_runs_outlasts_a_change(clients: Clients) -> None:
    keys = clients.keys(a={"max_concurrent": 1, "requests_per_minute": 2})
    running = admit(keys, bearer("a"))
    clients.write(a={"max_concurrent": 1, "requests_per_minute": 4}, b={})
    await keys.look()
    assert refused(keys, bearer("a")).message == "This API key may have 1 requests at once."
    running.release()
    assert admit(keys, bearer("a")).headers["x-ratelimit-remaining-requests"] == "1"


async def test_a_request_of_a_key_that_is_gone_ends_as_any_other(clients: Clients) -> None:
    keys = clients.keys(a={"max_concurrent": 1}, b={})
    running = admit(keys, bearer("a"))
    clients.write(b={})
    await keys.look()
    clients.write(a={"max_concurrent": 1}, b={})
    await keys.look()
    running.release()
    admit(keys, bearer("a"))
    assert refused(keys, bearer("a")).status == 429


@pytest.mark.parametrize("content", [b"", b"keys: []", b"keys: [", b"keys: [{name: a}]", b"\xff", None])
async def test_a_file_that_turns_wrong_leaves_the_keys_as_they_were_and_is_told_of(
    content: bytes | None, clients: Clients, logged: list[str]
) -> None:
    keys = clients.keys(a={})
    if content is None:
        clients.path.unlink()
    else:
        clients.path.write_bytes(content)
    for _ in range(3):
        await keys.look()
    assert admit(keys, bearer("a")).name == "a"
    assert refused(keys, bearer("b")).status == 401
    assert keys.refused is not None
    assert logged == ["keys file refused; the last one stays in force"]
    clients.write(b={})
    await keys.look()
    assert keys.refused is None
    assert admit(keys, bearer("b")).name == "b"


async def test_a_file_that_comes_back_just_as_it_was_is_read_again(clients: Clients, logged: list[str]) -> None:
    keys = clients.keys(a={})
    away = clients.path.rename(clients.path.with_name("away"))
    await keys.look()
    assert keys.refused
    away.rename(clients.path)
    await keys.look()
    assert keys.refused is None


@pytest.mark.parametrize("content", [None, "", "keys: []", "keys: [{name: a}]"])
def test_a_file_that_is_wrong_at_the_start_stops_it(content: str | None, clients: Clients) -> None:
    if content is not None:
        clients.path.write_text(content)
    with pytest.raises(KeysFileError):
        Keys(clients.path)


# What is told of them


def samples(registry: CollectorRegistry) -> Iterator[str]:
    return (line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#"))


async def test_metrics_go_by_the_names_of_keys_and_end_with_them(clients: Clients) -> None:
    registry = CollectorRegistry()
    metrics = KeyMetrics(registry)
    assert list(samples(registry)) == []
    metrics.clients = keys = clients.keys(a={"max_concurrent": 1, "models": ["m"]}, b={"requests_per_minute": 1})
    admitted = admit(keys, bearer("a"))
    with pytest.raises(PermissionDeniedError):
        admitted.require("x")
    refused(keys, bearer("a"))
    admit(keys, bearer("b")).release()
    refused(keys, bearer("b"))
    refused(keys, bearer("stranger"))
    told = set(samples(registry))
    assert {
        'headwater_router_key_requests_total{key="a"} 1.0',
        'headwater_router_key_running{key="a"} 1.0',
        'headwater_router_key_running{key="b"} 0.0',
        'headwater_router_key_refusals_total{key="a",reason="concurrency"} 1.0',
        'headwater_router_key_refusals_total{key="a",reason="model"} 1.0',
        'headwater_router_key_refusals_total{key="b",reason="rate"} 1.0',
        'headwater_router_authentication_failures_total{port="clients",reason="unknown"} 1.0',
        'headwater_router_keys_file_in_force{port="clients"} 1.0',
    } <= told
    clients.path.write_text("")
    await keys.look()
    assert 'headwater_router_keys_file_in_force{port="clients"} 0.0' in samples(registry)
    clients.write(b={})
    await keys.look()
    assert not any('key="a"' in line for line in samples(registry))


def test_a_new_key_lets_its_owner_in(clients: Clients) -> None:
    key = new_key()
    clients.path.write_text(f"keys: [{{name: a, hash: '{hashed(key)}'}}]")
    assert admit(Keys(clients.path), [(b"x-api-key", key.encode())]).name == "a"
    assert new_key() != key
