"""What an engine says that it serves is believed as far as it makes sense, and never does harm."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.endpoints.endpoint import ServedModel
from headwater_router.endpoints.listing import MOST_MODELS, read_models


def listed(*cards: Any) -> list[ServedModel]:
    return list(read_models(json.dumps({"object": "list", "data": cards}).encode()))


def test_aliases_stand_for_the_first_name_of_the_same_weights_and_adapters_for_their_model() -> None:
    cards = [{"id": "m", "root": "/w"}, {"id": "fast", "root": "/w"}, {"id": "sql", "parent": "m", "root": "/l"}]
    assert [(each.name, each.base, each.adapter) for each in listed(*cards)] == [
        ("m", "m", ""),
        ("fast", "m", ""),
        ("sql", "m", "sql"),
    ]


def test_what_a_card_says_beside_its_name_is_kept() -> None:
    card = {"id": "m", "root": "org/m", "owned_by": "vllm", "max_model_len": 4096}
    assert listed(card) == [ServedModel("m", "m", "", "", "org/m", "vllm", 4096)]


@pytest.mark.parametrize("odd", [0, -1, 2**70, True, "4096", None, 4096.0, [], {}], ids=repr)
def test_a_length_that_is_none_is_not_known(odd: object) -> None:
    assert listed({"id": "m", "max_model_len": odd})[0].max_model_len is None


@pytest.mark.parametrize("odd", [None, 1, "", "a\nb", "\x7f", "n" * 513, ["m"], {}], ids=repr)
def test_a_card_without_a_name_that_can_be_shown_is_passed_over(odd: object) -> None:
    assert [each.name for each in listed({"id": odd}, "m", None, [], {"id": "n", "root": odd, "parent": odd})] == ["n"]


def test_no_more_models_are_taken_than_one_endpoint_can_have() -> None:
    assert len(listed(*({"id": f"m{number}"} for number in range(20_000)))) == MOST_MODELS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
CARDS = st.lists(st.dictionaries(st.sampled_from(["id", "root", "parent", "owned_by", "max_model_len"]), JSON) | JSON)


@given(
    st.binary(max_size=50)
    | JSON.map(lambda value: json.dumps(value).encode())
    | CARDS.map(lambda cards: json.dumps({"data": cards}).encode())
    | st.integers(1, 3000).map(lambda depth: b'{"data":' + b"[" * depth)
)
def test_whatever_it_answers_it_is_a_list_of_names_or_an_error(body: bytes) -> None:
    try:
        models = read_models(body)
    except ValueError:
        return
    for model in models:
        assert model.name.isprintable()
        assert model.base
