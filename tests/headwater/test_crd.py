"""The CRD and `headwater.resource` say the same: fields, types, bounds, defaults, rules and their messages."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from e2e.refusals import PAGE, Refusal, refusals
from headwater import crd, rules
from headwater.resource import ModelDeployment, Spec, problems
from headwater.values import MAX_NAME, NAME_RULES, RULES, Duration, Rule

FILE = Path(__file__).parents[2] / "crds" / "modeldeployments.yaml"
CRD = yaml.safe_load(FILE.read_text())
VERSION = CRD["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]
SPEC = ROOT["properties"]["spec"]


def schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from schemas(each, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from schemas(schema[part], f"{path}[]")


SCHEMAS = dict(schemas(ROOT, ""))
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", timedelta: "string", dict: "object"}


def fields(model: type[BaseModel], path: str = ".spec") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Path, field, and the type that it has beside None."""
    for name, field in model.model_fields.items():
        written = f"{path}.{field.alias or name}"
        kind = next((each for each in get_args(field.annotation) if each is not type(None)), field.annotation)
        kind = field.annotation if get_origin(field.annotation) in (list, dict, Literal) else kind
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        yield written, field, kind
        inner, separator = (get_args(kind)[0], "[]") if get_origin(kind) is list else (kind, "")
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, written + separator)


FIELDS = {path: (field, kind) for path, field, kind in fields(Spec)}


def rules_of(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    for _, each in schemas(schema, ""):
        yield from each.get(RULES, ())


def test_the_file_is_what_the_resource_makes() -> None:
    assert FILE.read_text() == crd.text(), "run: python -m headwater.crd > crds/modeldeployments.yaml"


def test_every_field_is_there_and_no_other() -> None:
    deeper = (".spec.resources.", ".spec.template.")  # whose fields are Kubernetes's own
    there = {path for path in SCHEMAS if path.startswith(".spec.") and not path.startswith(deeper)}
    assert {path for path in there if not path.endswith("[]")} == FIELDS.keys()


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_has_the_type_and_default_that_python_gives_it(path: str) -> None:
    field, kind = FIELDS[path]
    schema = SCHEMAS[path]
    holder = SCHEMAS[path.rpartition(".")[0]]
    assert field.is_required() == (path.rpartition(".")[2] in holder.get("required", ()))
    if get_origin(kind) is Literal:
        assert (schema["type"], schema["enum"]) == ("string", list(get_args(kind)))
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        assert schema["type"] == "object"
        if isinstance(field.default, kind):
            assert kind.model_validate(schema.get("default", {})) == field.default
    elif get_origin(kind) is list:
        assert schema["type"] == "array"
    else:
        assert schema["type"] == TYPES[get_origin(kind) or kind]
    if "default" in schema and schema["type"] != "object":
        adapter = TypeAdapter(Duration if kind is timedelta else kind)
        assert adapter.validate_python(schema["default"]) == field.default
    elif not field.is_required() and schema["type"] != "object":
        assert field.default in (None, [])


def test_every_field_is_explained() -> None:
    silent = [path for path, schema in SCHEMAS.items() if not schema.get("description")]
    own = [path for path in silent if not path.endswith("[]") and not path.startswith(".metadata")]
    assert own == []
    long = [path for path, schema in SCHEMAS.items() if len(schema.get("description", "")) > 400]
    assert long == []


def test_the_schema_is_structural() -> None:
    for path, schema in SCHEMAS.items():
        assert not schema.keys() & {"$ref", "title", "$defs", "oneOf", "allOf", "const", "nullable"}, path
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        if schema.get("type") == "object":
            loose = "x-kubernetes-preserve-unknown-fields" in schema
            assert loose or "properties" in schema or "additionalProperties" in schema or path == "", path


def test_texts_and_lists_under_rules_are_bounded_so_that_their_cost_is() -> None:
    for path, schema in SCHEMAS.items():
        if RULES in schema and path:
            bound = {"string": "maxLength", "array": "maxItems"}.get(schema.get("type", ""))
            assert bound is None or bound in schema, path


def test_every_rule_between_fields_is_in_the_crd_with_its_message() -> None:
    declared = [each for each in vars(rules).values() if isinstance(each, Rule)]
    assert declared
    written = list(rules_of(ROOT))
    for rule in (*declared, *NAME_RULES):
        assert rule.schema() in written, rule.message


@pytest.mark.parametrize("refusal", refusals(), ids=lambda refusal: refusal.wrong)
def test_python_refuses_what_the_docs_say_is_refused(refusal: Refusal) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelDeployment.model_validate(refusal.resource)
    told = next((each for each in problems(caught.value) if each.startswith(refusal.field)), "")
    assert told, problems(caught.value)
    if refusal.message in {rule["message"] for rule in rules_of(ROOT)}:
        assert refusal.message in told


def test_every_message_of_a_rule_is_documented() -> None:
    page = " ".join(PAGE.read_text().split())
    unheard = {rule["message"] for rule in rules_of(ROOT) if rule["message"] not in page}
    assert unheard == set()


def test_appliers_share_lists_of_named_things() -> None:
    assert SCHEMAS[".spec.adapters"]["x-kubernetes-list-map-keys"] == ["name"]
    assert SCHEMAS[".spec.model.aliases"]["x-kubernetes-list-type"] == "set"
    assert SCHEMAS[".status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_the_number_of_replicas_has_no_default_since_it_excludes_autoscaling() -> None:
    assert "default" not in SCHEMAS[".spec.replicas"]
    assert "default" not in SCHEMAS[".spec.autoscaling"]


def test_names_fit_with_every_suffix() -> None:
    revision = "0123456789"
    longest = max(len(end) for end in (f"-{revision}-01234", "-workers", "-engine", f"-build-{revision}"))
    assert MAX_NAME + longest <= 63


def test_autoscalers_find_the_scale_and_people_the_short_name() -> None:
    assert CRD["spec"]["names"]["shortNames"] == ["md"]
    assert VERSION["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
    for path in VERSION["subresources"]["scale"].values():
        assert path in SCHEMAS
