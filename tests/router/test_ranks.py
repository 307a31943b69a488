"""Data-parallel engines behind one address: which of them gets a request, and what is known of each."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import backends
from headwater.events import BlockHash, BlockStored, EventBatch, encode, to_frames
from headwater.openai.errors import APIError
from headwater_router.admission.ceiling import Report
from headwater_router.admission.room import WaitReason
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec
from headwater_router.endpoints.total import total
from headwater_router.gateway.controls import RouterControls
from headwater_router.gateway.head import RANK_HEADERS
from headwater_router.outcome import Outcome
from tests.router.dispatching import Dispatching
from tests.router.gateway import BODY, CHAT, RunningGateway, gateway, until
from tests.router.test_index_subscriber import two_addresses
from tests.router.upstream import Upstream, stream_in_two, upstream

HEADER = b"x-data-parallel-rank"
BLOCK = 16


def page(*running: int) -> str:
    """What vLLM tells where so many data-parallel engines run so much."""
    return "".join(
        f'vllm:num_requests_running{{engine="{rank}",model_name="m"}} {count}\n'
        f'vllm:num_requests_waiting{{engine="{rank}",model_name="m"}} 0\n'
        f'vllm:cache_config_info{{block_size="{BLOCK}",engine="{rank}",num_gpu_blocks="1000"}} 1\n'
        for rank, count in enumerate(running)
    )


async def until_divided(running: RunningGateway, parts: int) -> None:
    await until(lambda: all(len(endpoint.targets) == parts for endpoint in running.router.fleet))


def completion(ids: Sequence[int]) -> bytes:
    return msgspec.json.encode({"model": "m", "prompt": list(ids), "max_tokens": 1})


def ranks_seen(engine: Upstream) -> list[bytes | None]:
    return [exchange.headers.get(HEADER) for exchange in engine.exchanges]


# Through the real router


class Publishers:
    """KV events of two ranks, at two ports that follow one another."""

    def __init__(self, context: zmq.asyncio.Context, addresses: Sequence[str]) -> None:
        self._sockets = [context.socket(zmq.XPUB) for _ in addresses]
        for socket, address in zip(self._sockets, addresses, strict=True):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            socket.bind(address)

    async def subscribed(self, rank: int, times: int = 1) -> None:
        for _ in range(times):
            while (await self._sockets[rank].recv())[:1] != b"\x01":
                pass

    async def stored(self, rank: int, sequence: int, ids: Sequence[int]) -> None:
        hashes: list[BlockHash] = [1000 * rank + 100 * sequence + number for number in range(len(ids) // BLOCK)]
        event = BlockStored(hashes, None, list(ids), BLOCK, None, "GPU", None)
        payload = encode(EventBatch(0.0, [event], dp_rank=rank))
        await self._sockets[rank].send_multipart(to_frames(b"", sequence, payload))


@asynccontextmanager
async def two_ranks() -> AsyncIterator[tuple[Upstream, Publishers, RunningGateway]]:
    first, second = two_addresses()
    with zmq.asyncio.Context() as context:
        publishers = Publishers(context, (first, second))
        async with upstream() as engine:
            engine.serve_metrics(page(0, 0))
            flag = f"{engine.url},name=a,backend=vllm,kv_events={first}"
            async with gateway(engine, policy="prefix", endpoint=[flag]) as router:
                await until_divided(router, 2)
                yield engine, publishers, router
        context.destroy(linger=0)


async def test_a_prompt_goes_to_the_rank_whose_kv_events_tell_of_it() -> None:
    async with two_ranks() as (engine, publishers, router):
        [endpoint] = router.router.fleet
        index = router.router._index
        prompts = [list(range(1000 * rank, 1000 * rank + 20 * BLOCK)) for rank in range(2)]
        await publishers.subscribed(1)
        for rank, ids in enumerate(prompts):
            sequence = 0
            while not index.blocks(endpoint.targets[rank].id):
                # Rank 0 had one target for all before, so that the first message may go to nobody.
                await publishers.stored(rank, sequence, ids)
                sequence += 1
                await asyncio.sleep(0.01)
        assert all(index.blocks(target.id) for target in endpoint.targets)
        for rank in (1, 0, 1, 1, 0):
            answer = await router.post(completion([*prompts[rank], *range(7)]), "/v1/completions")
            assert answer.status_code == 200
            assert ranks_seen(engine)[-1] == b"%d" % rank


async def test_the_second_turn_of_a_conversation_goes_to_the_rank_of_the_first() -> None:
    async with upstream() as engine, upstream() as other:
        for each in (engine, other):
            each.serve_metrics(page(0, 0, 0, 0))
        async with gateway(engine, other, policy="prefix") as router:
            await until_divided(router, 4)
            for conversation in range(6):
                text = f"{conversation} " * 3000
                body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}]})
                turns = [await router.post(body) for _ in range(4)]
                assert len({turn.headers["x-headwater-endpoint"] for turn in turns}) == 1
            seen = ranks_seen(engine) + ranks_seen(other)
            assert None not in seen
            for ranks in (ranks_seen(engine), ranks_seen(other)):
                assert all(len(set(ranks[place : place + 4])) == 1 for place in range(0, len(ranks), 4))


async def test_a_client_does_not_choose_the_rank() -> None:
    async with upstream() as engine, upstream() as old:
        engine.serve_metrics(page(0, 0))
        old.serve_metrics(page(0))
        async with gateway(engine, old) as router:
            await until(lambda: sorted(len(each.targets) for each in router.router.fleet) == [1, 2])
            headers = {name.decode(): "7" for name in RANK_HEADERS}
            for _ in range(6):
                assert (await router.client.post(CHAT, content=BODY, headers=headers)).status_code == 200
        assert set(ranks_seen(engine)) == {b"0", b"1"}
        assert ranks_seen(old) == [None, None]
        for exchange in (*engine.exchanges, *old.exchanges):
            assert exchange.headers.keys() & RANK_HEADERS <= {HEADER}


async def test_ranks_that_come_and_go_while_answers_run_leave_no_request_behind() -> None:
    release = asyncio.Event()
    async with upstream() as engine:
        engine.serve_metrics(page(0))
        word = b'data: {"choices":[{"delta":{"content":"w"}}]}\n\n'
        engine.answer = stream_in_two(word, word + b"data: [DONE]\n\n", release)
        async with gateway(engine) as router:
            [endpoint] = router.router.fleet
            open_ones = []
            for parts in (1, 2, 3, 1, 2):
                engine.serve_metrics(page(*[0] * parts))
                await until_divided(router, parts)
                reader, writer = await router.open()
                open_ones.append((reader, writer))
                await reader.readuntil(b"\r\n\r\n")
                assert endpoint.in_flight == len(open_ones)
            release.set()
            await until(lambda: endpoint.in_flight == 0)
            assert all(target.load.in_flight == 0 for target in endpoint.targets)
            for _, writer in open_ones:
                writer.close()
        ranks = ranks_seen(engine)
        assert [rank is None for rank in ranks] == [True, False, False, True, False]


async def test_what_a_rank_and_its_endpoint_have_is_shown() -> None:
    async with upstream() as engine:
        engine.serve_metrics(page(3, 4))
        async with gateway(engine) as router:
            await until_divided(router, 2)
            await router.post()
            [endpoint] = router.router.fleet
            assert [target.load.reported_running for target in endpoint.targets] == [3, 4]
            assert total(endpoint).reported_running == 7
            assert await router.metric('headwater_router_endpoint_reported_running{endpoint="a"}') == 7
            controls = _controls(router)
            [shown] = controls.endpoints()
            assert [each.rank for each in shown.ranks] == [0, 1]
            assert (shown.load.reported_running, shown.ranks[1].load.reported_running) == (7, 4)
            [decision] = controls.decisions()
            assert str(decision.rank).encode() == ranks_seen(engine)[0]
            assert decision.candidates[0].rank == decision.rank


def _controls(router: RunningGateway) -> RouterControls:
    it = router.router
    return RouterControls(it.dispatcher, it._policies, it._index, it.tokenizers)


# What the metrics tell


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        ("", 2),
        ("process_start_time_seconds 5\n", 2),
        (page(0), 1),
        (page(1, 1, 1), 3),
        (page(0, 0).replace('engine="0"', 'engine="8"').replace('engine="1"', 'engine="9"'), 1),
        (page(0, 0).replace('engine="0"', 'engine="2"'), 1),
        (page(*[0] * 65), 1),
    ],
    ids=["nothing", "no load", "one", "three", "those of a second node", "a gap", "too many"],
)
async def test_what_a_later_page_says_of_the_ranks(told: str, parts: int) -> None:
    async with upstream() as engine:
        engine.serve_metrics(page(0, 0))
        async with gateway(engine) as router:
            await until_divided(router, 2)
            engine.serve_metrics(told)
            before = engine.probed[b"/metrics"]
            await until(lambda: engine.probed[b"/metrics"] > before + 3)
            await until_divided(router, parts)


@pytest.mark.parametrize("name", backends.names())
def test_the_ranks_of_a_server_are_told_apart_where_it_can_be_told_which_is_to_answer(name: str) -> None:
    fake = Dispatching(1)
    fake.fleet.replace([EndpointSpec("http://10.0.0.9:8000", "e", name)])
    [endpoint] = fake.fleet
    fake.fleet.found_ranks(endpoint, 4, 4)
    assert endpoint.ranks == 4
    assert len(endpoint.targets) == (4 if name in ("vllm", "sglang") else 1)


# Where requests go


async def test_what_one_rank_is_not_reached_by_is_not_tried_at_another_of_the_endpoint() -> None:
    fake = Dispatching(2, ranks=(4, 1), max_attempts=5)
    for _ in range(20):
        call = await fake.run({"e0": Outcome.UNREACHABLE, "e1": Outcome.UNREACHABLE})
        assert sorted(stay.endpoint.name for stay in call.stays) == ["e0", "e1"]


async def test_what_an_endpoint_failed_at_is_not_tried_there_again_by_ranks_that_came_meanwhile() -> None:
    fake = Dispatching(1, ranks=(2,))
    call = fake.call()
    dispatch = await fake.dispatcher.choose(call)
    fake.fleet.found_ranks(fake.endpoints[0], 3, 3)
    fake.fail(dispatch, Outcome.FAILED)
    assert not await fake.dispatcher.may_retry(call, Outcome.FAILED)
    fake.close(call)


async def test_nor_where_they_came_while_the_request_was_at_another_endpoint() -> None:
    fake = Dispatching(2, ranks=(2, 1))
    call = fake.call()
    first = await fake.dispatcher.choose(call)
    fake.fail(first, Outcome.UNREACHABLE)
    assert await fake.dispatcher.may_retry(call, Outcome.UNREACHABLE)
    second = await fake.dispatcher.choose(call)
    assert second.endpoint is not first.endpoint
    fake.fleet.found_ranks(first.endpoint, 3, 3)
    fake.fail(second, Outcome.UNREACHABLE)
    assert not await fake.dispatcher.may_retry(call, Outcome.UNREACHABLE)
    fake.close(call)


async def test_a_busy_endpoint_gets_nothing_by_any_rank_and_a_full_rank_leaves_the_others() -> None:
    fake = Dispatching(1, ranks=(2,), queue=5)
    [endpoint] = fake.endpoints
    first, second = endpoint.targets
    first.load.report(Report(running=50, waiting=9, most_running=50))
    first.load.in_flight = 60
    fake.fleet.on_report(endpoint)
    assert fake.dispatcher.candidates.full == {first.id}
    call = fake.call()
    dispatch = await fake.dispatcher.choose(call)
    assert dispatch.decision.target is second
    fake.answer(dispatch)
    fake.close(call)
    fake.dispatcher.candidates.leave_alone(endpoint, fake.now + 5)
    assert fake.dispatcher.candidates.find(fake.call(), fake.now) is WaitReason.FULL


async def test_a_body_that_two_ranks_of_one_server_were_lost_over_was_lost_at_one_engine() -> None:
    fake = Dispatching(1, ranks=(2,))
    for _ in range(4):
        await fake.run({"e0": Outcome.LOST}, b"x")
    fake.dispatcher.check("/v1/completions", b"x", fake.now)


OUTCOMES = (Outcome.ANSWERED, Outcome.LOST, Outcome.FAILED, Outcome.UNREACHABLE, Outcome.OVERLOADED, Outcome.STALE)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**32), st.sampled_from(("prefix", "session",
       "round_robin", "least_loaded")))  # fmt: skip
def test_no_request_is_sent_to_an_endpoint_again_and_all_that_was_counted_is_given_back(
    ranks: list[int], seed: int, policy: str
) -> None:
    rng = random.Random(seed)
    fake = Dispatching(len(ranks), policy, ranks=ranks, max_attempts=6)
    seen: list[Endpoint] = fake.endpoints

    async def play() -> None:
        for _ in range(30):
            if rng.random() < 0.2:
                endpoint, parts = rng.choice(seen), rng.randrange(1, 5)
                fake.fleet.found_ranks(endpoint, parts, parts)
            await one()

    async def one() -> None:
        call = fake.call(b"%d" % rng.getrandbits(64))
        avoided: set[str] = set()
        while True:
            try:
                dispatch = await fake.dispatcher.choose(call)
            except APIError:
                break
            targets = [each.id for lineup in fake.dispatcher.candidates.of("m") for each in lineup.targets.all]
            assert sorted(targets) == sorted(
                each for endpoint in seen if endpoint.breaker.closed for each in endpoint.target_ids
            )
            assert dispatch.endpoint.name not in avoided
            assert dispatch.decision.target in dispatch.endpoint.targets
            outcome = rng.choice(OUTCOMES)
            if outcome is Outcome.ANSWERED:
                fake.answer(dispatch)
                break
            if rng.random() < 0.1:
                fake.fleet.found_ranks(dispatch.endpoint, 4, 4)
            else:
                avoided |= {dispatch.endpoint.name} if outcome is not Outcome.STALE else set()
            fake.fail(dispatch, outcome)
            fake.now += 2
            if not await fake.dispatcher.may_retry(call, outcome):
                break
        fake.close(call)

    patched = pytest.MonkeyPatch()
    patched.setattr("headwater_router.dispatch.dispatcher._BACKOFF", _NoBackoff())
    try:
        asyncio.run(play())
    finally:
        patched.undo()
    for endpoint in seen:
        assert endpoint.in_flight == 0
        assert all(target.load.in_flight == target.load.queued == 0 for target in endpoint.targets)


class _NoBackoff:
    def jittered(self, *_: object) -> float:
        return 0.0


def test_targets_have_names_of_their_own_in_all_lives_and_divisions() -> None:
    fake = Dispatching(1)
    [endpoint] = fake.endpoints
    names = [*endpoint.target_ids]
    for parts in (2, 3, 2, 4):
        fake.fleet.found_ranks(endpoint, parts, parts)
        names += endpoint.target_ids
        fake.fleet.begin_new_life(endpoint)
        names += endpoint.target_ids
    assert len(names) == len(set(names))


def test_every_header_by_which_a_server_is_told_a_rank_is_taken_off_requests() -> None:
    named = {backends.get(name).rank_header for name in backends.names()} - {None}
    assert named
    assert {name.encode() for name in named if name is not None} <= RANK_HEADERS
