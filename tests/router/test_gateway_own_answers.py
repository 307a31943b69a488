"""A client gets its own answer: not what another did not read, and not what an engine sends beside."""

from tests.router.gateway import gateway
from tests.router.upstream import OK, Exchange, answer_with, upstream

OWN = b'{"choices":[{}],"own":1}'
SECRET = b'{"secret":"of another client"}'


async def test_the_body_of_a_retried_answer_is_in_front_of_nobodys() -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good) as router:
        for _ in range(4):
            bad.answer = answer_with(500, SECRET)
            while not bad.exchanges:
                assert (await router.post()).content == OK
            bad.answer = answer_with(200, OWN)
            answers = [(await router.post()).content for _ in range(4)]
            assert set(answers) == {OK, OWN}
            bad.exchanges.clear()


async def test_a_second_answer_that_comes_with_the_first_goes_to_nobody() -> None:
    async def twice(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        both = [head + b"content-length: %d\r\n\r\n%s" % (len(body), body) for body in (OWN, SECRET)]
        await exchange.write(b"".join(both))

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = twice
        for _ in range(5):
            answer = await router.post()
            assert answer.content == OWN
            assert answer.headers.get_list("content-length") == [str(len(OWN))]


async def test_a_header_that_an_answer_takes_for_its_connection_is_not_passed_on() -> None:
    async with upstream() as engine, gateway(engine) as router:

        async def own(exchange: Exchange) -> None:
            await exchange.whole(headers=b"connection: x-own\r\nx-own: 1\r\nx-other: 2\r\n")

        engine.answer = own
        answer = await router.post()
        assert "x-own" not in answer.headers
        assert answer.headers["x-other"] == "2"


async def test_a_change_of_protocol_is_an_error_of_the_engine() -> None:
    async with upstream() as engine, gateway(engine) as router:

        async def switch(exchange: Exchange) -> None:
            await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n\0\0")

        engine.answer = switch
        answer = await router.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "endpoint_malformed")
