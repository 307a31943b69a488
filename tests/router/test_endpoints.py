"""Where endpoints come from, and what probes find out about them."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from headwater_router.endpoints.readiness import Readiness
from headwater_router.endpoints.tls import trust
from tests.router.gateway import gateway, until
from tests.router.upstream import Exchange, Upstream, UpstreamConnection, upstream


async def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with upstream("m") as first, upstream("n") as second:
        file.write_text(f"- {{url: '{first.url}', backend: vllm}}\n")
        async with gateway(endpoint=[], endpoints_file=file, ready=1) as router:
            assert [endpoint.spec.url for endpoint in router.router.fleet] == [first.url]
            file.write_text(f"- {{url: '{second.url}', backend: vllm, name: new}}\n")
            await until(
                lambda: [endpoint.ready for endpoint in router.router.fleet if endpoint.name == "new"] == [True]
            )
            assert [endpoint.spec.url for endpoint in router.router.fleet] == [second.url]
            assert (await router.post(b'{"model":"n","messages":[]}')).headers["x-headwater-endpoint"] == "new"


async def test_a_server_that_goes_by_its_path_is_asked_for_by_the_name_that_it_was_given() -> None:
    bodies = list[bytes]()

    async def keep(exchange: Exchange) -> None:
        bodies.append(exchange.body)
        await exchange.whole(b'{"model": "/tmp/view", "choices": [{}]}')

    async with upstream("/tmp/view") as engine:
        engine.answer = keep
        async with gateway(endpoint=[f"{engine.url},backend=vllm,model=m"], ready=1) as router:
            assert [each["id"] for each in (await router.client.get("/v1/models")).json()["data"]] == ["m"]
            answer = await router.post(b'{"model":"m","messages":[]}')
            assert answer.status_code == 200
            assert (await router.post(b'{"model":"/tmp/view","messages":[]}')).status_code == 404
    assert [json.loads(body)["model"] for body in bodies] == ["/tmp/view"]


async def test_a_file_that_turns_wrong_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with upstream() as engine, upstream("n") as other:
        file.write_text(f"- {{url: '{engine.url}', backend: vllm}}\n")
        async with gateway(endpoint=[], endpoints_file=file, ready=1) as router:
            file.write_text("][")
            probed = engine.probed[b"/health"]
            await until(lambda: engine.probed[b"/health"] > probed + 60)  # longer than two looks at the file
            assert (await router.post()).status_code == 200
            file.write_text(f"- {{url: '{other.url}', backend: vllm}}\n")
            await until(lambda: [endpoint.spec.url for endpoint in router.router.fleet] == [other.url])


async def test_an_endpoint_that_says_it_is_not_ready_gets_nothing_until_it_is() -> None:
    async with upstream() as engine, upstream() as other, gateway(engine, other) as router:
        engine.pages[b"/health"] = (503, b"{}")
        await router.until_ready(1)
        assert {(await router.post()).headers["x-headwater-endpoint"] for _ in range(6)} == {"b"}
        engine.pages[b"/health"] = (200, b"{}")
        await router.until_ready(2)
        assert {(await router.post()).headers["x-headwater-endpoint"] for _ in range(6)} == {"a", "b"}


async def test_an_endpoint_that_was_gone_comes_back_as_a_new_one() -> None:
    async with upstream() as other:
        async with upstream() as engine:
            port = engine.port
            context = gateway(engine, other)
            router = await context.__aenter__()
            [first] = [endpoint for endpoint in router.router.fleet if endpoint.name == "a"]
            before = first.targets[0].id
        try:
            await router.until_ready(1)
            async with upstream(port=port):
                await router.until_ready(2)
                assert first.targets[0].id != before, "its cache is empty, so what the index knows of it is void"
        finally:
            await context.__aexit__(None, None, None)


async def test_an_engine_that_restarted_between_two_probes_is_a_new_one() -> None:
    async with upstream() as engine, gateway(engine) as router:
        [endpoint] = router.router.fleet
        engine.serve_metrics("process_start_time_seconds 100.0\n")
        await until(lambda: endpoint.process_start == 100.0)
        before = endpoint.targets[0].id
        engine.serve_metrics("process_start_time_seconds 200.0\n")
        await until(lambda: endpoint.targets[0].id != before)


async def test_what_an_engine_reports_of_its_load_is_read_and_what_it_does_not_is_none() -> None:
    async with upstream() as engine, gateway(engine) as router:
        [endpoint] = router.router.fleet
        engine.serve_metrics("vllm:num_requests_running 3\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.5\n")
        load = endpoint.targets[0].load
        await until(lambda: load.reported_running == 3)
        assert (load.reported_waiting, load.reported_cache_usage) == (2, 0.5)
        engine.pages[b"/metrics"] = (404, b"")
        await until(lambda: load.reported_running is None)
        assert await router.metric('headwater_router_endpoint_reported_running{endpoint="a"}') == 0
        assert endpoint.ready


@pytest.fixture
def own_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """Whom the router trusts, in place of those whom the system does."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    trust.cache_clear()
    yield authority
    trust.cache_clear()


@asynccontextmanager
async def behind_tls(engine: Upstream, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamConnection(engine), "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_an_endpoint_behind_tls_and_below_a_path_gets_its_key_and_not_the_clients(
    own_authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", "of-the-engine")
    async with upstream() as engine, behind_tls(engine, own_authority.issue_cert("localhost")) as port:
        engine.pages = {b"/base" + path: page for path, page in engine.pages.items()}
        flag = f"https://localhost:{port}/base,name=a,backend=vllm,api_key_env=ENGINE_KEY"
        async with gateway(endpoint=[flag], ready=1) as router:
            assert (await router.post()).status_code == 200
            [exchange] = engine.exchanges
            assert exchange.line == b"POST /base/v1/chat/completions HTTP/1.1"
            assert exchange.headers[b"host"] == b"localhost:%d" % port
            assert exchange.headers[b"authorization"] == b"Bearer of-the-engine"
            assert {path for path in engine.probed if path in engine.pages} == {b"/base/health", b"/base/v1/models"}


async def test_a_certificate_of_somebody_else_is_not_trusted(own_authority: trustme.CA) -> None:
    foreign = trustme.CA().issue_cert("localhost")
    async with (
        upstream() as engine,
        behind_tls(engine, foreign) as port,
        gateway(endpoint=[f"https://localhost:{port},backend=vllm"], ready=0) as router,
    ):
        await until(lambda: "certificate" in router.router.fleet.why_not_ready("m"))
        assert not engine.probed


async def test_who_listens_nowhere_is_told_so() -> None:
    async with upstream() as engine:
        port = engine.port
    async with gateway(endpoint=[f"http://127.0.0.1:{port}"], ready=0) as router:
        await until(lambda: router.router.fleet.why_not_ready("m").endswith(f"nobody listens at 127.0.0.1:{port}"))


async def test_a_metrics_page_that_never_ends_takes_nothing_from_its_endpoint() -> None:
    async def never_ends(exchange: Exchange) -> None:
        await exchange.begin_stream()
        while not exchange.connection.gone.is_set():
            await exchange.chunk(b"# " + b"x" * 65536 + b"\n")
            await asyncio.sleep(0)

    async with upstream() as engine, gateway(engine) as router:
        engine.pages[b"/metrics"] = never_ends
        probed = engine.probed[b"/health"]
        await until(lambda: engine.probed[b"/health"] > probed + 20)
        [endpoint] = router.router.fleet
        assert endpoint.readiness is Readiness.READY
        assert (await router.post()).status_code == 200
