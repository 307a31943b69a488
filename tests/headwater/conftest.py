"""Stores to fetch from, and nothing of the machine that the tests run on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.cli import fetch as command
from tests.headwater.fake_stores import FILES, RegistryStore, Store, hub, registry, s3, serving, titled


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("headwater.fetch.patience.pause", pause)
    return waited


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps in the same order each time; and threads would be most of the time."""

    async def to_thread(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    monkeypatch.setattr("asyncio.to_thread", to_thread)
    monkeypatch.setattr("headwater.fetch.transport.in_thread", to_thread)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine."""
    unset = "HF_TOKEN HF_ENDPOINT DOCKER_AUTH_CONFIG AWS_PROFILE SSL_CERT_FILE".split()  # noqa: SIM905
    for name in (*unset, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(command, "TERMINATION_LOG", tmp_path / "none")


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch, alone: None, waits: list[float]) -> Iterator[Store]:
    with serving(Store(dict(FILES)), hub) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
        yield store


@pytest.fixture
def the_store(monkeypatch: pytest.MonkeyPatch, alone: None, waits: list[float]) -> Iterator[Store]:
    with serving(Store({f"llm/base/{name}": content for name, content in FILES.items()}), s3) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


@pytest.fixture
def the_registry(alone: None, waits: list[float]) -> Iterator[RegistryStore]:
    with serving(RegistryStore({}), registry) as store:
        assert isinstance(store, RegistryStore)
        store.push("1.0", *((content, titled(name)) for name, content in FILES.items()))
        yield store
