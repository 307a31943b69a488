"""Following a cluster over real HTTP: lists, watches, and what goes wrong with them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headwater_router.endpoints.deployments import World
from headwater_router.endpoints.endpoint import EndpointError
from headwater_router.endpoints.kubernetes import Discovery
from tests.router.cluster import SECRET, ApiServer, endpoint_slice, member, model, pod
from tests.router.gateway import until


@dataclass(slots=True, eq=False)
class Following:
    discovery: Discovery
    errors: Counter[str]
    worlds: list[World] = field(default_factory=list)

    @property
    def names(self) -> list[str] | None:
        """Of the deployments that are known; None: nothing is known yet."""
        return [deployment.key for deployment in self.worlds[-1].deployments] if self.worlds else None

    @property
    def endpoints(self) -> dict[str, bool]:
        return {spec.name: accepting for spec, accepting in self.worlds[-1].endpoints.items()} if self.worlds else {}


@asynccontextmanager
async def follow(*namespaces: str) -> AsyncIterator[Following]:
    errors: Counter[str] = Counter()
    following = Following(Discovery(namespaces, lambda kind: errors.update([kind]), first_pause=0.01), errors)
    task = asyncio.create_task(following.discovery.run(following.worlds.append))
    try:
        yield following
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_what_is_there_is_listed_and_what_comes_is_watched(cluster: ApiServer) -> None:
    cluster.put(model(), pod(), endpoint_slice(member(pod())))
    async with follow() as following:
        await until(lambda: following.endpoints == {"m-1": True})
        its = pod("m-2", address="10.0.0.2")
        cluster.put(model("n"), its, endpoint_slice(member(pod()), member(its, "10.0.0.2")))
        # Each kind has a watch of its own, and no order between them.
        await until(lambda: following.names == ["default/m", "default/n"] and len(following.endpoints) == 2)
        assert following.endpoints == {"m-1": True, "m-2": True}
        cluster.remove(model())
        await until(lambda: following.names == ["default/n"])
        assert following.endpoints == {}
    assert not following.errors


async def test_only_what_belongs_to_deployments_is_asked_for(cluster: ApiServer) -> None:
    async with follow() as following:
        await until(lambda: following.names == [] and cluster.watching == 3)
    selectors = {(path.rpartition("/")[2], query.get("labelSelector")) for path, query in cluster.requests}
    label = "headwater.dev/deployment"
    assert selectors == {("modeldeployments", None), ("endpointslices", label), ("pods", label)}


async def test_of_pods_nothing_is_asked_that_is_no_business_of_the_routers(cluster: ApiServer) -> None:
    """Their specs hold what others keep in the environment of their containers."""
    cluster.put(model(), pod(), endpoint_slice(member(pod())))
    async with follow() as following:
        await until(lambda: following.endpoints == {"m-1": True} and cluster.watching == 3)
        cluster.put(pod(ending=True))
        await until(lambda: following.endpoints == {"m-1": False})
        cluster.remove(pod())
        await until(lambda: following.endpoints == {})
    assert "10.0.0.1" in cluster.told
    assert SECRET not in cluster.told
    assert not following.errors


async def test_a_watch_of_pods_that_goes_on_knows_its_columns(cluster: ApiServer) -> None:
    async with follow() as following:
        await until(lambda: following.names == [] and cluster.watching == 3)
        cluster.bookmark()
        cluster.put(model(), pod(), endpoint_slice(member(pod())))
        await until(lambda: following.endpoints == {"m-1": True})
        cluster.hang_up()
        cluster.remove(pod())
        await until(lambda: following.endpoints == {})
    assert not following.errors


async def test_nothing_is_known_before_everything_was_listed(cluster: ApiServer) -> None:
    cluster.refusal = 403
    async with follow() as following:
        await until(lambda: min(following.errors[watch.kind] for watch in following.discovery.watches) > 2)
        assert following.names is None
        cluster.refusal = None
        await until(lambda: following.names == [])


async def test_namespaces_can_be_named(cluster: ApiServer) -> None:
    cluster.put(model("m", "a"), model("m", "b"), model("m", "c"))
    async with follow("a", "b") as following:
        await until(lambda: following.names == ["a/m", "b/m"])
        await until(lambda: cluster.watching == 6)
        cluster.put(model("n", "c"), model("n", "b"))
        await until(lambda: following.names == ["a/m", "b/m", "b/n"])


async def test_a_long_list_comes_in_pages(cluster: ApiServer) -> None:
    cluster.page = 2
    cluster.put(*(model(f"m{i}") for i in range(5)))
    async with follow() as following:
        await until(lambda: following.names == [f"default/m{i}" for i in range(5)])
        assert cluster.lists("modeldeployments") == 3


async def test_a_watch_that_ends_goes_on_where_it_was(cluster: ApiServer) -> None:
    cluster.put(model())
    async with follow() as following:
        await until(lambda: cluster.watching == 3)
        cluster.hang_up()
        cluster.put(model("n"))
        await until(lambda: following.names == ["default/m", "default/n"])
        assert cluster.lists("modeldeployments") == 1, "nothing was missed, so nothing is listed again"
    assert not following.errors


async def test_after_a_bookmark_the_watch_goes_on_from_there(cluster: ApiServer) -> None:
    cluster.put(model())
    async with follow() as following:
        await until(lambda: cluster.watching == 3)
        cluster.bookmark()
        cluster.forget_history()
        cluster.bookmark()
        before = {watch.kind: watch.last_word for watch in following.discovery.watches}
        await until(lambda: all(watch.last_word != before[watch.kind] for watch in following.discovery.watches))
        cluster.hang_up()
        cluster.put(model("n"))
        await until(lambda: following.names == ["default/m", "default/n"])
        assert cluster.lists("modeldeployments") == 1


@pytest.mark.parametrize("as_event", [True, False], ids=["within the watch", "instead of the watch"])
async def test_a_version_that_is_too_old_is_answered_with_a_new_list(cluster: ApiServer, as_event: bool) -> None:
    cluster.expired_as_event = as_event
    cluster.put(model("gone"), model("stays"))
    async with follow() as following:
        await until(lambda: cluster.watching == 3)
        await cluster.stop()
        cluster.remove(model("gone"))
        cluster.put(model("new"))
        cluster.forget_history()
        await cluster.start()
        await until(lambda: following.names == ["default/new", "default/stays"])


async def test_while_the_api_server_is_gone_what_was_known_is_still_known(cluster: ApiServer) -> None:
    cluster.put(model(), pod(), endpoint_slice(member(pod())))
    async with follow() as following:
        await until(lambda: following.endpoints == {"m-1": True} and cluster.watching == 3)
        await cluster.stop()
        await until(lambda: min(following.errors[watch.kind] for watch in following.discovery.watches) > 2)
        assert following.endpoints == {"m-1": True}
        await cluster.start()
        cluster.put(pod("m-1", ending=True))
        await until(lambda: following.endpoints == {"m-1": False})


async def test_a_list_that_breaks_off_changes_nothing(cluster: ApiServer) -> None:
    cluster.page = 1
    cluster.put(model("m"), model("n"))
    async with follow() as following:
        await until(lambda: following.names == ["default/m", "default/n"] and cluster.watching == 3)
        cluster.forget_history()
        cluster.refusal = 500
        cluster.hang_up()
        await until(lambda: following.errors["modeldeployments"] > 2)
        cluster.refusal = None
        await until(lambda: cluster.watching == 3)
        assert [[deployment.name for deployment in world.deployments] for world in following.worlds[-1:]] == [
            ["m", "n"]
        ]
        assert all(len(world.deployments) == 2 for world in following.worlds)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away"}},
        {"type": "MODIFIED"},
        {"type": "MODIFIED", "object": {"metadata": {}}},
        [],
    ],
    ids=["an error", "no object", "no name", "no event"],
)
async def test_an_odd_word_of_the_server_ends_nothing(cluster: ApiServer, event: object) -> None:
    cluster.put(model())
    async with follow() as following:
        await until(lambda: cluster.watching == 3)
        cluster.send(event)  # type: ignore[arg-type]
        await until(lambda: sum(following.errors.values()) == 3)
        cluster.put(model("n"))
        await until(lambda: following.names == ["default/m", "default/n"])


async def test_who_may_not_in_says_so_and_tries_again(cluster: ApiServer) -> None:
    cluster.refusal = 401
    async with follow() as following:
        await until(lambda: following.errors["pods"] > 1)
        cluster.refusal = None
        await until(lambda: following.names == [])


async def test_without_a_cluster_it_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(EndpointError, match="--kubernetes: neither a service account nor a kubeconfig"):
        await Discovery([], lambda kind: None).connect()
