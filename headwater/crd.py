"""The CRD of ModelDeployment, made from `headwater.resource`: `python -m headwater.crd` prints it.

What crds/modeldeployments.yaml holds is this output, and a test fails when it is not. Fields, types, bounds, defaults,
rules and texts are read from the resource's classes; what only Kubernetes knows (the status, the columns, the scale
subresource) is written down here.
"""

import sys
from datetime import timedelta
from typing import Any, Final

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from headwater.kubernetes import GROUP, PLURAL, VERSION
from headwater.resource import KIND, ModelDeployment, Spec
from headwater.values import NAME_RULES, RULES, write_duration

Schema = dict[str, Any]

_HEADER: Final = "# Made from headwater/resource.py by `python -m headwater.crd`; change that, then run it anew.\n"


def crd() -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["md"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": _columns(),
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def text() -> str:
    """What stands in crds/modeldeployments.yaml."""
    return _HEADER + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _root() -> Schema:
    return {
        "description": "One model and how it is served.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"{GROUP}/{VERSION}", "type": "string"},
            "kind": {"description": KIND, "type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec_schema(),
            "status": _status(),
        },
        RULES: [rule.schema() for rule in (*NAME_RULES, *ModelDeployment.bound_by)],
    }


def _columns() -> list[Schema]:
    def column(name: str, path: str, *, kind: str = "string", wide: bool = False, description: str = "") -> Schema:
        told = {"description": description} if description else {}
        return {"name": name, "type": kind, "jsonPath": path, **told, **({"priority": 1} if wide else {})}

    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        column("Model", ".spec.model.source"),
        column("Backend", ".status.backend", description="The server that was chosen"),
        column("Ready", f"{ready}.status", description="Whether the current revision serves as wanted"),
        column("Serving", ".status.readyReplicas", kind="integer", description="Replicas that take requests"),
        column("Phase", ".status.phase"),
        column("URL", ".status.url"),
        column("Age", ".metadata.creationTimestamp", kind="date"),
        column("Wanted", ".spec.replicas", kind="integer", wide=True, description="Empty where autoscaled"),
        column("Updated", ".status.updatedReplicas", kind="integer", wide=True, description="Of the current revision"),
        column("Tensor", ".spec.parallelism.tensor", kind="integer", wide=True),
        column("Nodes", ".spec.parallelism.nodes", kind="integer", wide=True),
        column("Revision", ".spec.model.revision", wide=True, description="Of the model"),
        column("Policy", ".spec.routing.policy", wide=True),
        column("Reason", f"{ready}.reason", wide=True),
        column("Message", ".status.message", wide=True),
    ]


# The spec, from the resource's classes


class _Generator(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        return write_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value  # fields stand in the order of the classes


def spec_schema() -> Schema:
    whole = Spec.model_json_schema(schema_generator=_Generator)
    described = {"description": ModelDeployment.model_fields["spec"].description}
    return described | _structural(whole, whole.pop("$defs"))


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """A JSON schema as pydantic writes it, as Kubernetes wants it: no references, titles, nulls or unions."""
    schema = dict(schema)
    if reference := schema.pop("$ref", None):
        schema = definitions[reference.rpartition("/")[2]] | schema
    if "x-kubernetes-int-or-string" not in schema and "anyOf" in schema:
        (kind,) = (each for each in schema.pop("anyOf") if each != {"type": "null"})
        return _structural(kind | schema, definitions)
    schema.pop("title", None)
    ordered = _documented(schema)
    if "properties" in schema:
        ordered["properties"] = {name: _structural(each, definitions) for name, each in schema["properties"].items()}
        ordered.pop("additionalProperties", None)
    elif schema.get("additionalProperties") is True:
        del ordered["additionalProperties"]
        ordered["x-kubernetes-preserve-unknown-fields"] = True
    elif "additionalProperties" in schema:
        ordered["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        ordered["items"] = _structural(schema["items"], definitions)
        ordered.setdefault("x-kubernetes-list-type", "atomic")
    for bound in ("Minimum", "Maximum"):
        if (value := ordered.pop(f"exclusive{bound}", None)) is not None:
            ordered |= {bound.lower(): value, f"exclusive{bound}": True}
    if ordered.get("type") == "integer":
        ordered["format"] = "int32"
    return ordered


def _documented(schema: Schema) -> Schema:
    """With the default where Kubernetes fills it in, and in the text, which is all that `kubectl explain` shows."""
    default = schema.pop("default", None)
    description = " ".join(schema.pop("description", "").split())
    if isinstance(default, dict) and "properties" in schema:
        # Whole, since the rules are tried on it before the fields' own defaults are filled in.
        default = {name: value for name, value in default.items() if value not in (None, [], {})}
    filled: Schema = {"description": description} if description else {}
    if default not in (None, [], {}):
        filled["default"] = default
        if not isinstance(default, dict):
            filled["description"] = f"{description} Default: {yaml.safe_dump(default).split()[0]}."
    return filled | schema


# The status


def _object(description: str, required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    needed = {"required": list(required)} if required else {}
    return {"description": description, "type": "object", **needed, "properties": properties}


def _text(description: str, **more: Any) -> Schema:
    return {"description": description, "type": "string", **more}


def _count(description: str) -> Schema:
    return {"description": description, "type": "integer", "format": "int32"}


def _status() -> Schema:
    big = {"type": "integer", "format": "int64"}
    return _object(
        "What is; written by the operator.",
        observedGeneration={"description": "Generation of the spec that all this is about.", **big},
        phase=_text("In one word: Pending, Downloading, Loading, Ready, ScaledToZero or Failed."),
        message=_text("What the Ready condition says."),
        url=_text("Where clients reach the gateway."),
        backend=_text("The server that was chosen."),
        replicas=_count("Replicas that there are, of any revision."),
        readyReplicas=_count("Replicas that take requests, of any revision."),
        updatedReplicas=_count("Replicas of the current revision."),
        selector=_text("Label selector of the replicas' pods, for autoscalers."),
        renderVersion=_count("Version of the rules that the pods were made by; an upgrade of the operator keeps it."),
        conditions={
            "description": "Ready, Progressing, Degraded, ModelLoaded, Routable: whether, since when and why.",
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": _condition(),
        },
        shares={
            "description": "With routing.share Auto: what it gets of each class of requests.",
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name", "class"],
            "items": _object(
                "One class of the requests for one name.",
                ("name", "class", "percent"),
                name=_text("What clients send as `model`."),
                percent=_count("Of the requests of that class, to within 5."),
                **{"class": _text("structured, shared, long or plain.")},
            ),
        },
        claimedNames={
            "description": "The names that this namespace had first, and keeps while they are asked for.",
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": _object(
                "One name.",
                ("name", "since"),
                name=_text("What clients send as `model`."),
                since=_text("Since when it is this namespace's.", format="date-time"),
            ),
        },
        adapters={
            "description": "The adapters, as the replicas report them.",
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": _object(
                "One adapter.",
                ("name",),
                name=_text("What clients send as `model`."),
                loaded=_count("Replicas that have it loaded."),
                replicas=_count("Replicas that should."),
                message=_text("Why one of them has not."),
            ),
        },
        autoscaling=_object(
            "The last decision.",
            desired=_count("Replicas that were found right."),
            lastScaleTime=_text("When their number was last changed.", format="date-time"),
            reason=_text("Why, in one word."),
            message=_text("Why, with the figures."),
        )
        | {"x-kubernetes-preserve-unknown-fields": True},
        weights=_object(
            "Where the weights are.",
            phase=_text("How far they are: NotNeeded, Pending, Filling, Filled or Failed."),
            claim=_text("Name of the PersistentVolumeClaim that holds them."),
            message=_text("What holds them up."),
            progress=_object(
                "How far they are, while they are fetched.",
                percent=_count("Of the bytes."),
                bytes=_count("In all.") | {"format": "int64"},
                secondsLeft=_count("At the rate so far."),
            ),
        )
        | {"x-kubernetes-preserve-unknown-fields": True},
    )


def _condition() -> Schema:
    return _object(
        "One aspect.",
        ("type", "status", "lastTransitionTime", "reason", "message"),
        type=_text("Which aspect.", maxLength=316),
        status=_text("Whether.", enum=["True", "False", "Unknown"]),
        reason=_text("Why, in one word.", maxLength=1024),
        message=_text("Why, and what to do.", maxLength=32768),
        lastTransitionTime=_text("Since when the status is that.", format="date-time"),
        observedGeneration={
            "description": "Generation of the spec that it is about.",
            "type": "integer",
            "format": "int64",
        },
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    sys.stdout.write(text())
