"""What is meant for one connection goes no further."""

from hypothesis import given
from hypothesis import strategies as st

from headwater.http.headers import OWN_TO_A_CONNECTION, end_to_end, is_stream

NAMES = st.sampled_from([b"x-a", b"x-b", b"content-type", *sorted(OWN_TO_A_CONNECTION)])


def test_what_a_connection_header_names_goes_no_further() -> None:
    headers = [
        (b"x-a", b"1"),
        (b"connection", b"X-A, close"),
        (b"x-b", b"2"),
        (b"connection", b"x-b"),
        (b"x-c", b"3"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert end_to_end(headers) == [(b"x-c", b"3")]
    assert end_to_end([(b"x-a", b"1"), (b"connection", b"Keep-Alive")]) == [(b"x-a", b"1")]


def test_what_says_twice_what_it_is_is_a_stream_where_it_says_so_once() -> None:
    stream, page = (b"content-type", b"Text/Event-Stream; charset=utf-8"), (b"content-type", b"text/html")
    assert is_stream([stream]) and is_stream([page, stream]) and is_stream([stream, page])
    assert not is_stream([page]) and not is_stream([]) and not is_stream([(b"x-a", b"text/event-stream")])


def test_no_connection_header_takes_the_length() -> None:
    headers = [(b"content-length", b"3"), (b"connection", b"content-length")]
    assert end_to_end(headers) == [(b"content-length", b"3")]


def test_further_ones_may_stay_behind() -> None:
    headers = [(b"host", b"a"), (b"te", b"trailers"), (b"x-a", b"1")]
    assert end_to_end(headers, OWN_TO_A_CONNECTION | {b"host"}) == [(b"x-a", b"1")]


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"", b",", b"x-a", b" X-B ,te", b"close"]))))
def test_what_is_passed_on_is_in_order_and_nobodys_own(headers: list[tuple[bytes, bytes]]) -> None:
    passed = end_to_end(headers)
    rest = iter(headers)
    assert all(each in rest for each in passed)
    named = b",".join(value for name, value in headers if name == b"connection").lower()
    for name, _ in passed:
        assert name not in OWN_TO_A_CONNECTION and name not in {each.strip() for each in named.split(b",")}
