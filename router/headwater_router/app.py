"""The router's process: builds the parts, follows the endpoints, serves, drains, and ends."""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from headwater.http.bodies import BodyBudget
from headwater.http.cors import Cors
from headwater.http.descriptors import Descriptors
from headwater.http.parser import Admit
from headwater.http.server import Server
from headwater.keys import KeysFileError
from headwater.lag import LoopLag
from headwater.listening import cannot_listen
from headwater.logs import configure_logging
from headwater.memory import memory_limit
from headwater_router.admission.keys import Keys
from headwater_router.admission.room import WaitReason
from headwater_router.config import RouterSettings, contradictions
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.dispatch.waiting import Patience
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.deployments import World
from headwater_router.endpoints.discovery import StaticEndpoints
from headwater_router.endpoints.endpoint import Endpoint, EndpointError, EndpointSpec
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.parity import Parity
from headwater_router.endpoints.probe import Prober
from headwater_router.gateway.access_log import AccessLog, open_access_log
from headwater_router.gateway.app import Gateway, page
from headwater_router.gateway.forward import Forwarder
from headwater_router.gateway.journal import Journal
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.pages import Pages
from headwater_router.index import PrefixIndex, PromptBuilder
from headwater_router.index.subscriber import EventSubscriber, Publisher
from headwater_router.index.tokenizer import ModelTokenizer, named_tokenizer
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.picker.objective import Objective
from headwater_router.picker.policies import Policies

if TYPE_CHECKING:
    from headwater_router.admin.server import AdminServer
    from headwater_router.endpoints.kubernetes import Discovery
    from headwater_router.replicas.sharing import Sharing

log = structlog.get_logger(__name__)

_QUIET = 1.0
"""Seconds in which clients with an idle connection ask again, if they are about to."""


class SettingsError(ValueError):
    """A setting is wrong in a way that its type does not show; the message names the flag."""


class ListenError(Exception):
    """The address is taken, or is not ours."""


class Router:
    """Everything of one router process. Build it inside a running loop."""

    def __init__(self, settings: RouterSettings, descriptors: Descriptors) -> None:
        """Raises SettingsError or EndpointError."""
        self.settings = settings
        flags = [EndpointSpec.parse(text) for text in settings.endpoint]
        for contradiction in contradictions(settings):
            raise SettingsError(contradiction)
        self._static = StaticEndpoints(flags, settings.endpoints_file)
        self.keys = _keys("--api-keys", settings.api_keys)
        self.admin_keys = _keys("--admin-keys", settings.admin_keys)
        self._index = PrefixIndex()
        self._policies = Policies(settings.policy, self._index, objective=Objective(settings.objective))
        self.tokenizers = _tokenizers(settings)
        self.fleet = Fleet(self._make_breaker, self._policies.forget, kubernetes=settings.kubernetes)
        self.metrics = RouterMetrics()
        self.metrics.keys.clients, self.metrics.keys.admin = self.keys, self.admin_keys
        self.descriptors = descriptors
        self.sharing = _sharing(settings.redis_url, self.fleet, self._policies, self.metrics)
        self.discovery = _discovery(settings, self.metrics) if settings.kubernetes else None
        self.dispatcher = Dispatcher(
            self.fleet,
            self._policies,
            self.metrics,
            self.descriptors,
            _patience(settings, descriptors),
            max_attempts=settings.max_attempts,
            answer_timeout=settings.answer_timeout,
            refuses_slo=settings.slo_admission == "attainable",
        )
        if self.sharing is not None:
            self.dispatcher.on_change = self.sharing.turns.happened
        self.forwarder = Forwarder(
            self.dispatcher,
            self.metrics,
            self.descriptors,
            connect_timeout=settings.connect_timeout,
            stall_timeout=settings.stall_timeout,
            keep_alive_comments=settings.keep_alive_comments,
            expose_endpoint=settings.expose_endpoint,
        )
        self.fleet.on_unreachable = self.forwarder.cut_off
        bodies = _body_budget(settings)
        self.lag = LoopLag()
        self.metrics.tokenizers = self.tokenizers
        self.pages = Pages(self.fleet, self._index, self.metrics, self.dispatcher, bodies, self.descriptors, self.lag)
        self.access_log = _access_log(settings, self.metrics)
        self.gateway = self._make_gateway()
        self.server = Server(
            self.gateway,
            self.descriptors,
            max_head=settings.max_header_kib * 1024,
            max_body=int(settings.max_body_mib * 2**20),
            bodies=bodies,
            most_of_an_address=settings.max_connections_per_address,
            admit=_admission(self.keys),
            cors=Cors(settings.cors_origin) if settings.cors_origin else None,
        )
        self._world: World | None = None
        self._probing: dict[EndpointSpec, asyncio.Task[None]] = {}
        self._subscribed: dict[EndpointSpec, asyncio.Task[None]] = {}

    def _make_gateway(self) -> Gateway:
        settings, pages = self.settings, self.pages
        prompts = PromptBuilder(session_header=settings.session_header, tokenizers=self.tokenizers)
        own = {"/ready": page(pages.ready), "/metrics": page(pages.prometheus), "/version": page(pages.version)}
        return Gateway(
            self.forwarder,
            self.fleet,
            prompts,
            Journal(self.metrics, prompts, self.access_log),
            keys_are_ours=self.keys is not None,
            # With a port for those who run it, its inside is on that port alone.
            pages=own if settings.admin_port is None else {},
        )

    def admin_server(self) -> "AdminServer | None":
        """Raises OSError where it cannot listen. None: there is no admin port."""
        if self.settings.admin_port is None:
            return None
        from headwater_router.admin.server import AdminServer  # FastAPI takes 30 MB and half a second.
        from headwater_router.gateway.controls import RouterControls

        controls = RouterControls(self.dispatcher, self._policies, self._index, self.tokenizers)
        return AdminServer(self.pages, controls, self.settings, self.keys, self.admin_keys)

    def _make_breaker(self) -> Breaker:
        settings = self.settings
        return Breaker(
            failures=settings.breaker_failures, window=settings.breaker_window, open_for=settings.breaker_open
        )

    async def follow_endpoints(self) -> None:
        """Keep the fleet true to flags, file, cluster and health, and the index to KV events and other routers.

        Until cancelled.
        """
        settings = self.settings
        prober = Prober(
            self.fleet, self.descriptors, settings.probe_interval, settings.probe_timeout, settings.probe_failures
        )
        async with asyncio.TaskGroup() as group:

            def take_world(world: World) -> None:
                self._world = world
                self._update(group, prober)

            if self.discovery is not None:
                group.create_task(self.discovery.run(take_world))
            group.create_task(self.lag.run())
            for keys in (self.keys, self.admin_keys):
                if keys is not None:
                    group.create_task(keys.follow())
            if self.sharing is not None:
                group.create_task(self.sharing.run())
            group.create_task(Parity(self.fleet, self.tokenizers, self.descriptors).run())
            async for _ in self._static.changes():
                self._update(group, prober)

    def _update(self, group: asyncio.TaskGroup, prober: Prober) -> None:
        new, gone = self.fleet.replace(self._static.specs, self._world)
        self.descriptors.reserve_for_endpoints(len(self.fleet))
        for endpoint in gone:
            self.forwarder.forget(endpoint)
            self.metrics.forget(endpoint.name)
            self._probing.pop(endpoint.spec).cancel()
            if (subscribed := self._subscribed.pop(endpoint.spec, None)) is not None:
                subscribed.cancel()
        for endpoint in new:
            endpoint.last_heard = partial(self.forwarder.last_heard, endpoint)
            self._probing[endpoint.spec] = group.create_task(prober.run(endpoint))
        for endpoint in self.fleet:
            # The policy may change while the endpoint stays.
            policy = self._policies.name(self.fleet.deployment(endpoint).policy)
            if endpoint.spec.kv_events is not None and policy == "prefix" and endpoint.spec not in self._subscribed:
                self._subscribed[endpoint.spec] = group.create_task(self._follow_events(endpoint))

    async def _follow_events(self, endpoint: Endpoint) -> None:
        """Subscribe anew for each life of the endpoint, and when other targets stand for it: a new subscriber is told
        the whole content of the cache."""
        assert endpoint.spec.kv_events is not None
        publisher = Publisher(endpoint.spec.kv_events, endpoint.spec.kv_replay)
        while True:
            targets = endpoint.targets
            subscriber = EventSubscriber(self._index, [each.id for each in targets], publisher, endpoint.ranks)
            task = asyncio.create_task(subscriber.run())
            try:
                while endpoint.targets is targets and not task.done():
                    subscriber.ranks = max(subscriber.ranks, endpoint.ranks)
                    await asyncio.wait([task], timeout=self.settings.probe_interval)
                if task.done():
                    log.error("KV events cannot be followed", endpoint=endpoint.name, reason=str(task.exception()))
                    return
            finally:
                task.cancel()


def _keys(flag: str, path: Path | None) -> Keys | None:
    """Raises SettingsError."""
    if path is None:
        return None
    try:
        return Keys(path)
    except KeysFileError as error:
        raise SettingsError(f"{flag}: {error}") from None


def _patience(settings: RouterSettings, descriptors: Descriptors) -> dict[WaitReason, Patience]:
    return {
        WaitReason.NOT_READY: Patience(settings.hold_requests, settings.hold_seconds),
        WaitReason.FULL: Patience(settings.queue_requests, settings.queue_seconds),
        # As many as find a place among the clients.
        WaitReason.NO_CONNECTION: Patience(descriptors.room, settings.connection_wait),
    }


def _admission(keys: Keys | None) -> Admit | None:
    if keys is None:
        return None
    return lambda head: keys.admit(head.path, head.headers, time.monotonic())


def _body_budget(settings: RouterSettings) -> BodyBudget:
    """Never less than one body of the largest size: such a request would be told to come back for ever."""
    mib = settings.max_bodies_mib
    limit = memory_limit() // 4 if mib is None else int(mib * 2**20)
    return BodyBudget(max(limit, int(settings.max_body_mib * 2**20)))


def _access_log(settings: RouterSettings, metrics: RouterMetrics) -> AccessLog | None:
    """Raises SettingsError."""
    try:
        return open_access_log(settings.access_log, metrics.access_log_dropped)
    except OSError as error:
        raise SettingsError(f"--access-log: {settings.access_log} cannot be written: {error.strerror}") from None


def _discovery(settings: RouterSettings, metrics: RouterMetrics) -> "Discovery":
    # Not imported by those who have no cluster: the client takes 80 MB and half a second.
    from headwater_router.endpoints.kubernetes import Discovery

    discovery = Discovery(settings.kubernetes_namespaces, metrics.deployments.watch_failed)
    metrics.deployments.watches = discovery.watches
    return discovery


def _sharing(url: str | None, fleet: Fleet, policies: Policies, metrics: RouterMetrics) -> "Sharing | None":
    """Raises SettingsError."""
    if url is None:
        return None
    from headwater_router.replicas.sharing import Sharing  # As above: the client takes 6 MB.

    try:
        return Sharing(url, fleet, policies, metrics)
    except ValueError as error:
        raise SettingsError(f"--redis-url: {error}") from None


def _tokenizers(settings: RouterSettings) -> Tokenizers:
    try:
        named = dict(named_tokenizer(setting) for setting in settings.tokenizer)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--tokenizer: {error}") from None
    return Tokenizers(named, folder=settings.tokenizers_folder, load=ModelTokenizer.from_folder)


async def serve(settings: RouterSettings) -> None:
    """Route until a signal. Raises SettingsError, EndpointError or ListenError."""
    router = Router(settings, Descriptors.of_process())
    if router.discovery is not None:
        await router.discovery.connect()
    try:
        await router.server.listen(settings.host, settings.port)
    except OSError as error:
        raise ListenError(cannot_listen(settings.host, settings.port, error)) from None
    try:
        admin = router.admin_server()
    except OSError as error:
        await router.server.close()
        reason = cannot_listen(settings.admin_host, settings.admin_port or 0, error, of="admin-")
        raise ListenError(reason) from None
    if admin is not None:
        admin.start()
    following = asyncio.create_task(router.follow_endpoints())
    ending = asyncio.create_task(_until_drained(router))
    log.info("routing", url=f"http://{settings.host}:{settings.port}", policy=settings.policy)
    try:
        await asyncio.wait((following, ending), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        await router.server.close()
        for task in (following, ending):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await task
        router.forwarder.close()
        router.tokenizers.close()
        if admin is not None:
            await admin.close()
        if router.access_log is not None:
            router.access_log.close()


async def _until_drained(router: Router) -> None:
    """Until a signal, and then until running answers are done, their time is up, or a second signal comes."""
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (second if first.is_set() else first).set())
    await first.wait()
    router.gateway.draining = router.pages.draining = True
    router.server.leave()
    router.dispatcher.room.drain()
    timeout = router.settings.shutdown_timeout
    log.info("draining", open_requests=router.forwarder.open_requests, timeout=timeout)
    waits = [asyncio.ensure_future(each) for each in (_until_quiet(router), second.wait())]
    await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _until_quiet(router: Router) -> None:
    """Until no answer runs and no client that is still here asks for another one.

    A client whose connection is idle may have sent a request just now. To close it then would lose that request, so
    those get a moment to ask once more, and to be told by that answer to go elsewhere.
    """
    while True:
        await router.forwarder.until_idle()
        if all(connection.late for connection in router.server.clients.open):
            return
        begun = router.forwarder.begun
        await asyncio.sleep(_QUIET)
        if router.forwarder.begun == begun:
            return


def run(settings: RouterSettings) -> int:
    """Route until a signal. Returns the exit status. Raises SettingsError or EndpointError before it listens."""
    configure_logging(settings.log_level)
    _collect_garbage_rarely()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with asyncio.Runner(loop_factory=_uvloop()) as runner:
            runner.run(serve(settings))
    except ListenError as error:
        print(f"headwater route: {error}", file=sys.stderr)
        return 1
    return 0


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def _collect_garbage_rarely() -> None:
    """What was imported stays, and a request leaves no cycles behind: looking at it all again takes time from it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)


__all__ = ["EndpointError", "Router", "SettingsError", "run", "serve"]
