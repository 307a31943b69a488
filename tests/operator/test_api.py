"""What is sent to the API server is what was meant, and what it answers is told apart by what it says."""

import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from headwater_operator.cluster.api import ApiError, as_yaml

ASTRAL = "chat \U0001f600, \U00020000"


def as_read(text: str) -> str:
    """Half of a pair is no character."""
    return "".join("\ufffd" if 0xD800 <= ord(each) <= 0xDFFF else each for each in text)


@given(st.text(st.characters(exclude_categories=[])))
@example(ASTRAL)
@example("\x00 \x1f \x7f \x85 \x9f \u2028 \u2029 \ufeff \ufffe \uffff \ud83d")
def test_every_character_reaches_an_object_and_a_status(text: str) -> None:
    sent = as_yaml({"spec": {text: [text]}})
    expected = {"spec": {as_read(text): [as_read(text)]}}
    assert json.loads(sent) == expected
    if len(text) < 500:  # the longest key of YAML
        assert yaml.safe_load(sent.decode()) == expected


def test_an_emoji_is_sent_as_it_is() -> None:
    assert "\U0001f600".encode() in as_yaml({"alias": ASTRAL}) and b"\\ud" not in as_yaml({"alias": ASTRAL})


@pytest.mark.parametrize(
    ("status", "message", "permanent"),
    [
        (
            500,
            "failed to create typed patch object (default/m; apps/v1, Kind=Deployment): "
            ".spec.template.spec.nodeSelektor: field not declared in schema",
            True,
        ),
        (500, "quantities must match the regular expression '^([+-]?[0-9.]+)...'", True),
        (500, "etcdserver: request is too large", True),
        (500, "etcdserver: leader changed", False),
        (503, "field not declared in schema", False),
        (422, "Deployment.apps is invalid", True),
        (413, "Request entity too large", True),
        (409, "the object has been modified", False),
        (429, "too many requests", False),
        (0, "no answer", False),
    ],
)
def test_what_would_be_refused_again_is_told_apart_by_what_the_server_says(
    status: int, message: str, permanent: bool
) -> None:
    assert ApiError(status, "Reason", message).permanent is permanent
