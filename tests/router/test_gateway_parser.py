"""The request parser: whatever the pieces in which bytes come, the requests are the same."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.http.bodies import BodyBudget
from headwater.http.parser import Admit, RequestParser, Stage
from headwater.http.request import Head, Request
from headwater.openai.errors import APIError, AuthenticationError
from tests.router.front import Counted

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nHost: x\r\nX-Own: 1\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: 1\r\n\r\n"
)
OFFER = (
    b"POST /tokenize HTTP/1.1\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAA\r\n"
    b"content-length: 5\r\n\r\nhello"
)
LAST = b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"


class Parsed:
    """A parser with what it delivered."""

    def __init__(
        self,
        *pieces: bytes,
        max_head: int = 1024,
        max_body: int = 64,
        budget: int = 2**20,
        admit: Admit | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.expected = 0
        self.budget = BodyBudget(budget)
        self.parser = RequestParser(
            self.requests.append,
            self._expect,
            max_head=max_head,
            max_body=max_body,
            bodies=self.budget,
            admit=admit,
            client="10.0.0.7",
        )
        for piece in pieces:
            self.parser.feed(piece)

    def _expect(self) -> None:
        self.expected += 1

    @property
    def bodies(self) -> list[bytes]:
        return [request.body for request in self.requests]

    def let_go(self) -> None:
        """As when all answers were given, and the client leaves."""
        for request in self.requests:
            request.end()
        self.parser.close()

    @property
    def statuses(self) -> list[int | None]:
        return [request.error.status if request.error else None for request in self.requests]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def test_a_request_is_what_was_sent() -> None:
    [request] = Parsed(POST).requests
    assert (request.method, request.target, request.path) == (
        b"POST",
        b"/v1/chat/completions?a=1",
        "/v1/chat/completions",
    )
    assert request.headers == [(b"host", b"x"), (b"x-own", b"1"), (b"content-length", b"5")]
    assert (request.body, request.keep_alive, request.http_1_0) == (b"hello", True, False)


@given(
    parts=st.lists(st.sampled_from([GET, POST, CHUNKED, OFFER]), min_size=1, max_size=6),
    last=st.sampled_from([b"", LAST, b"\x16\x03\x01 no http\r\n\r\n"]),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_requests_do_not_depend_on_the_pieces_they_come_in(parts: list[bytes], last: bytes, cuts: list[int]) -> None:
    data = b"".join(parts) + last
    pieces = Parsed(*split(data, cuts))
    expected = [b"" if part is GET else b"hello" for part in parts]
    if last:
        expected.append(b"hi" if last is LAST else b"")
    assert pieces.bodies == expected
    assert pieces.statuses[: len(parts)] == [None] * len(parts)
    whole = Parsed(data)
    assert [(each.target, each.headers, each.keep_alive) for each in pieces.requests] == [
        (each.target, each.headers, each.keep_alive) for each in whole.requests
    ]


@given(
    size=st.integers(0, 200),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_a_body_above_the_limit_is_refused_once_and_the_next_request_is_read(
    size: int, chunked: bool, cuts: list[int]
) -> None:
    body = b"x" * size
    if chunked:
        data = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + (
            b"%x\r\n%b\r\n" % (size, body) if size else b""
        )
        data += b"0\r\n\r\n"
    else:
        data = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (size, body)
    parsed = Parsed(*split(data + POST, cuts))
    assert parsed.statuses == [413 if size > 64 else None, None]
    assert parsed.bodies == [b"" if size > 64 else body, b"hello"]


@given(size=st.integers(0, 3000), cuts=st.lists(st.integers(0, 3500), max_size=8))
def test_a_head_above_the_limit_is_a_431_and_the_end(size: int, cuts: list[int]) -> None:
    head = b"POST / HTTP/1.1\r\nx-long: " + b"x" * size + b"\r\ncontent-length: 0\r\n\r\n"
    parsed = Parsed(*split(head, cuts))
    if size > 1024:
        assert parsed.statuses == [431]
        parsed.parser.feed(POST)
        assert len(parsed.requests) == 1
    elif size < 900:
        assert parsed.statuses == [None]


def test_a_head_that_does_not_end_is_cut_off() -> None:
    parsed = Parsed(POST, b"POST / HTTP/1.1\r\nx-long: ", *[b"x" * 100] * 8)
    assert parsed.statuses == [None]
    for _ in range(4):
        parsed.parser.feed(b"x" * 100)
    assert parsed.statuses == [None, 431]


def test_a_large_body_before_it_does_not_count_as_head() -> None:
    large = b"POST / HTTP/1.1\r\ncontent-length: 5000\r\n\r\n" + b"x" * 4000
    parsed = Parsed(large, b"x" * 1000 + GET[:10], GET[10:], max_body=10_000)
    assert parsed.statuses == [None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    ],
)
def test_what_is_malformed_is_a_400_after_the_requests_before_it(wrong: bytes) -> None:
    parsed = Parsed(POST + wrong + POST)
    assert parsed.statuses == [None, 400]
    assert not parsed.requests[-1].keep_alive


@pytest.mark.parametrize("zeros", [18, 4300, 20_000])
@pytest.mark.parametrize("more", [b"", b"content-encoding: br\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n"])
@pytest.mark.parametrize("cuts", [[], [40]])
def test_a_length_of_many_digits_is_a_400(zeros: int, more: bytes, cuts: list[int]) -> None:
    head = b"POST / HTTP/1.1\r\n%bcontent-length: %b16\r\n\r\n" % (more, b"0" * zeros)
    parsed = Parsed(POST, *split(head + b"x" * 16 + POST, cuts), max_head=2**16)
    assert parsed.statuses == [None, 400]
    parsed.let_go()
    assert parsed.budget.in_flight == 0


@pytest.mark.parametrize("where", [GET, POST, CHUNKED, OFFER], ids=["get", "post", "chunked", "offer"])
def test_a_mistake_of_our_own_is_answered(where: bytes) -> None:
    def mistaken(head: Head) -> None:
        raise RuntimeError("a mistake")

    parsed = Parsed(where, admit=mistaken)
    assert parsed.statuses == [500]
    assert not parsed.requests[0].keep_alive
    assert parsed.parser.stage is Stage.ENDED
    parsed.let_go()
    assert parsed.budget.in_flight == 0


def test_nothing_is_read_behind_a_request_that_closes_the_connection() -> None:
    for goodbye in (LAST, b"GET / HTTP/1.0\r\n\r\n"):
        parsed = Parsed(goodbye + POST)
        parsed.parser.feed(POST)
        assert parsed.statuses == [None]
        assert not parsed.requests[0].keep_alive


def test_a_client_that_waits_before_it_sends_its_body_is_told_to_go_on() -> None:
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    parsed = Parsed(head[:30], head[30:])
    assert (parsed.expected, parsed.requests) == (1, [])
    parsed.parser.feed(b"hello")
    assert (parsed.expected, parsed.bodies) == (1, [b"hello"])
    assert Parsed(head + b"hello").expected == 0


def test_a_client_that_waits_to_send_too_large_a_body_is_refused_at_once() -> None:
    parsed = Parsed(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 500\r\n\r\n")
    assert (parsed.expected, parsed.statuses) == (0, [413])
    assert not parsed.requests[0].keep_alive


def test_a_trailer_is_no_header() -> None:
    [request] = Parsed(CHUNKED).requests
    assert request.headers == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models/a%20b?x=%20", "/v1/models/a b"),
        (b"http://gateway:80/v1/models?x=1", "/v1/models"),
        (b"http://gateway", "/"),
        (b"*", "*"),
    ],
)
def test_the_path_is_decoded_and_stripped_of_host_and_query(target: bytes, path: str) -> None:
    [request] = Parsed(b"OPTIONS " + target + b" HTTP/1.1\r\n\r\n").requests
    assert request.path == path


@pytest.mark.parametrize(
    ("target", "path", "upstream"),
    [
        (b"/v1/chat/completions/", "/v1/chat/completions", b"/v1/chat/completions"),
        (b"/v1/completions//?a=/", "/v1/completions", b"/v1/completions?a=/"),
        (b"/?a=1", "/", b"/?a=1"),
        (b"//", "/", b"/"),
        (b"/v1/models/a%2F", "/v1/models/a/", b"/v1/models/a%2F"),
    ],
)
def test_a_slash_at_the_end_of_the_path_means_nothing(target: bytes, path: str, upstream: bytes) -> None:
    [request] = Parsed(b"GET " + target + b" HTTP/1.1\r\n\r\n").requests
    assert (request.path, request.target) == (path, upstream)


@pytest.mark.parametrize("given", [b"abc-1", b"a b", b"x" * 128])
def test_a_request_is_known_by_the_id_that_its_client_gives_it(given: bytes) -> None:
    [request] = Parsed(b"GET / HTTP/1.1\r\nX-Request-Id: " + given + b"\r\n\r\n").requests
    assert (request.id, request.client) == (given, "10.0.0.7")


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"caf\xc3\xa9", b"a\tb"])
def test_an_id_that_no_log_could_hold_is_replaced(given: bytes) -> None:
    parsed = Parsed(b"GET / HTTP/1.1\r\nx-request-id: " + given + b"\r\n\r\n" + GET + b"no http\r\n\r\n")
    ids = [request.id for request in parsed.requests]
    assert len(set(ids)) == 3
    assert all(len(each) == 32 and int(each, 16) for each in ids)


def test_what_is_wrong_with_a_head_is_answered_under_the_id_that_it_has() -> None:
    parsed = Parsed(b"GET / HTTP/1.1\r\nx-request-id: mine\r\nx-next: 1\r\nbad header\r\n\r\n")
    assert (parsed.statuses, parsed.requests[0].id) == ([400], b"mine")


# What is decided from the head


def refuse(head: Head) -> APIError | None:
    return AuthenticationError("no") if head.path == "/secret" else None


SECRET = b"POST /secret HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
SECRETS = [SECRET, OFFER.replace(b"/tokenize", b"/secret"), CHUNKED.replace(b"/v1/completions", b"/secret")]


@given(
    parts=st.lists(st.sampled_from([GET, POST, CHUNKED, OFFER, *SECRETS]), min_size=1, max_size=6),
    last=st.sampled_from([b"", LAST, b"\x16\x03\x01 no http\r\n\r\n", POST[:-2], POST[:30]]),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_each_head_is_asked_about_once_and_what_was_taken_up_for_it_is_given_back_once(
    parts: list[bytes], last: bytes, cuts: list[int]
) -> None:
    door = Counted(refuse)
    parsed = Parsed(*split(b"".join(parts) + last, cuts), admit=door)
    whole = sum(last is each for each in (LAST,))
    assert parsed.statuses[: len(parts)] == [401 if part in SECRETS else None for part in parts]
    begun = len(parts) + whole + (last == POST[:-2])
    assert len(door.heads) == begun
    assert door.taken == begun - sum(part in SECRETS for part in parts)
    for request in parsed.requests:
        assert (request.admitted is None) == (request.error is not None)
    parsed.let_go()
    parsed.requests[0].end()
    assert door.given == door.taken
    assert parsed.budget.in_flight == 0


def test_a_head_is_answered_before_its_body_is_here() -> None:
    head = SECRET[:-5]
    parsed = Parsed(head, admit=Counted(refuse))
    assert parsed.statuses == [401]
    for piece in (b"he", b"llo", POST):
        parsed.parser.feed(piece)
    assert parsed.statuses == [401, None]
    assert [request.keep_alive for request in parsed.requests] == [True, True]


@pytest.mark.parametrize(
    "more",
    [b"expect: 100-continue\r\ncontent-length: 5\r\n", b"content-length: 1048577\r\n"],
    ids=["one that waits", "a long one"],
)
def test_a_body_that_is_not_worth_reading_ends_the_connection(more: bytes) -> None:
    parsed = Parsed(b"POST /secret HTTP/1.1\r\n" + more + b"\r\n", admit=Counted(refuse), max_body=2**22)
    assert (parsed.statuses, parsed.expected) == ([401], 0)
    assert not parsed.requests[0].keep_alive
    assert parsed.parser.stage is Stage.ENDED


def test_what_nobody_wants_is_read_up_to_a_bound() -> None:
    parsed = Parsed(b"POST /secret HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", admit=Counted(refuse))
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    for _ in range(16):
        parsed.parser.feed(chunk)
        assert parsed.parser.stage is Stage.BODY
    parsed.parser.feed(chunk)
    assert parsed.parser.stage is Stage.ENDED
    assert parsed.statuses == [401]
    assert parsed.budget.in_flight == 0


def test_a_client_that_leaves_amid_its_body_gives_back_what_was_taken_up() -> None:
    door = Counted()
    parsed = Parsed(POST[:-2], admit=door)
    assert (door.taken, door.given, parsed.budget.in_flight) == (1, 0, 3)
    parsed.let_go()
    assert (door.given, parsed.budget.in_flight) == (1, 0)
