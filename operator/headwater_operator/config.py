"""The operator's settings: one table that feeds flags, environment variables, help and docs."""

import json
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from headwater import __version__, backends


def _namespaced(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", value):
        raise ValueError("must be NAMESPACE/NAME")
    return value


def _from_text(value: Any) -> Any:
    """A flag's JSON; a variable's is read already."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _peer(value: dict[str, Any]) -> dict[str, Any]:
    if not value or value.keys() - _PEER_FIELDS:
        # One that the API server does not know would be dropped, and what is left lets in more than was meant.
        raise ValueError(f"must have one or more of {', '.join(_PEER_FIELDS)}, and nothing else")
    return value


def _template(value: dict[str, Any]) -> dict[str, Any]:
    if value.keys() - {"metadata", "spec"} or not all(isinstance(part, dict) for part in value.values()):
        raise ValueError("must be a pod template: maps metadata and spec, and nothing else")
    return value


def _known(value: dict[str, str]) -> dict[str, str]:
    if unknown := sorted(value.keys() - set(backends.names())):
        raise ValueError(f"must be of {', '.join(backends.names())}; found {', '.join(unknown)}")
    return value


def _shared(value: dict[str, str]) -> dict[str, str]:
    for source, place in value.items():
        if not re.fullmatch(r"(hf|s3|oci)://[^@]+@.+", source) or not re.fullmatch(r"[a-z0-9.-]+(/[^/]+)*", place):
            raise ValueError('must be as {"hf://OWNER/NAME@REVISION": "CLAIM/PATH"}; s3:// and oci:// have @main')
        if ".." in place.split("/"):
            raise ValueError("must be a path within the claim")
    return value


def _cache(value: dict[str, Any]) -> dict[str, Any]:
    if not value:
        return value
    texts = [value.get("namespace"), *([value["secret"]] if "secret" in value else [])]
    models, volume = value.get("models"), value.get("volume")
    if value.keys() - set(_CACHE_FIELDS) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"must have namespace, volume and models, and may have secret; found {', '.join(value)}")
    if not isinstance(models, list) or not models or not all(isinstance(each, str) for each in models):
        raise ValueError('models must be a list of patterns of SOURCE@REVISION, such as "hf://Qwen/*@main"')
    if not isinstance(volume, dict) or volume.keys() & set(_OURS_OF_A_VOLUME):
        raise ValueError(f"volume must be of a PersistentVolume's spec, without {', '.join(_OURS_OF_A_VOLUME)}")
    return value


_CACHE_FIELDS: Final = ("namespace", "volume", "models", "secret")
_OURS_OF_A_VOLUME: Final = ("accessModes", "claimRef", "persistentVolumeReclaimPolicy", "storageClassName")
_PEER_FIELDS: Final = ("namespaceSelector", "podSelector", "ipBlock")

NamespacedName = Annotated[str, AfterValidator(_namespaced)]
Peer = Annotated[dict[str, Any], BeforeValidator(_from_text), AfterValidator(_peer)]
"""Who may connect, as an element of a NetworkPolicy's `ingress.from`."""
Template = Annotated[dict[str, Any], BeforeValidator(_from_text), AfterValidator(_template)]
Variables = Annotated[dict[str, str], BeforeValidator(_from_text)]
Images = Annotated[dict[str, str], BeforeValidator(_from_text), AfterValidator(_known)]
Shared = Annotated[dict[str, str], BeforeValidator(_from_text), AfterValidator(_shared)]
Cache = Annotated[dict[str, Any], BeforeValidator(_from_text), AfterValidator(_cache)]
KVEvents = Literal["never", "prefix"]


class OperatorSettings(BaseSettings):
    """`headwater operate`. Each field is a flag (`--lease-name`) and a variable (`HEADWATER_OPERATOR_LEASE_NAME`)."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_OPERATOR_", extra="forbid")

    groups: ClassVar[dict[str, str]] = {
        "namespaces": "ModelDeployments",
        "gateway_url": "gateway",
        "engine_image": "pods of servers",
        "kv_events": "who reaches engines",
        "weights_image": "weights",
        "lease_namespace": "lease",
        "host": "server",
    }
    """Headings of the help, each before a field: what is declared from there on is under it."""

    namespaces: list[str] = Field(
        [], description="Namespaces to look after. Repeat the flag for each. Default: all of them."
    )
    max_replicas: int = Field(
        100,
        ge=1,
        description="Most replicas of one ModelDeployment, counted in pods: replicas, times parallelism.nodes. One "
        "that asks for more gets as many whole replicas as are allowed, and is Degraded.",
    )
    resync_interval: float = Field(300, gt=0, description="Seconds after which everything is reconciled again.")
    workers: int = Field(8, ge=1, description="ModelDeployments that are reconciled at once.")
    gateway_url: str | None = Field(None, description="The gateway as clients see it; shown in status.url.")
    gateway_service: NamespacedName | None = Field(
        None,
        description="NAMESPACE/NAME of the routers' Service, whose pods are asked for their load, at its port admin if "
        "it has one. Without it there is no autoscaling.",
    )
    gateway_interval: float = Field(2, gt=0, description="Seconds between two looks at the routers' load.")
    engine_image: str = Field(
        f"headwater-engine:{__version__}", description="Image of our own engine, for pods that name none."
    )
    backend_images: Images = Field(
        {},
        description="Images of the servers, for pods that name none, as JSON: "
        '{"vllm": "registry.example.com/vllm:v0.32.0"}. Counts for revisions that are made from then on.',
    )
    backend_registries: Images = Field(
        {},
        description="Registries or mirrors that the servers' own images are taken from, as JSON: "
        '{"tgi": "registry.example.com"}; name and tag are ours. backend_images wins. Counts likewise.',
    )
    default_env: Variables = Field(
        {},
        description='Variables of all servers, and of the Jobs that fetch weights, as JSON: {"HF_ENDPOINT": '
        '"http://hub.internal"}. spec.backend.env wins. Counts for revisions that are made from then on.',
    )
    default_template: Template = Field(
        {},
        description="What to merge into all pods, as JSON: metadata and spec, as in spec.template, which wins. Counts "
        "for revisions that are made from then on.",
    )
    inherited_labels: list[str] = Field(
        [],
        description="Key of a label of ModelDeployments that all objects get which are made for them, such as "
        "cost-center or kueue.x-k8s.io/queue-name. Repeat the flag for each.",
    )
    inherited_annotations: list[str] = Field(
        [], description="Key of an annotation that they get in the same way. Repeat the flag for each."
    )
    kv_events: KVEvents = Field(
        "never",
        description="Which engines publish KV events, which tell the token ids of all prompts: none, or those whose "
        "routing.policy is prefix. Routers make use of them for prompts that are token ids, and with --tokenizer. "
        "Counts for revisions that are made from then on.",
    )
    engine_routers: list[Peer] = Field(
        [],
        description="Who may send requests to engines and read their KV events, as an element of a NetworkPolicy's "
        "`ingress.from` in JSON: the routers. Repeat the flag for each. With one, each ModelDeployment gets a "
        "NetworkPolicy that keeps all others out.",
    )
    engine_clients: list[Peer] = Field(
        [],
        description="Who else may reach the port that engines serve at: this operator, for adapters, and Prometheus. "
        "Repeat the flag for each.",
    )
    weights_image: str | None = Field(
        None, description="Image of the Job that fetches weights, by `headwater fetch`. Default: --engine-image."
    )
    weights_size: str = Field("100Gi", description="Size of a volume for weights, where the resource names none.")
    weights_storage_class: str | None = Field(
        None, description="StorageClass of such a volume. Default: the cluster's own."
    )
    weights_access_mode: Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"] = Field(
        "ReadWriteOnce",
        description="Access mode of such a volume. ReadWriteOnce ties all replicas of a deployment to one node; "
        "ReadOnlyMany has them read a copy, where the class can copy volumes and mount copies on many nodes.",
    )
    weights_shared: Shared = Field(
        {},
        description="Weights that are there already in every namespace, as JSON: "
        '{"hf://Qwen/Qwen3-8B@main": "models/qwen3-8b"} has who asks for them mount that folder of the '
        "PersistentVolumeClaim `models`, read-only, and fetch nothing. Counts for revisions made from then on.",
    )
    weights_cache: Cache = Field(
        {},
        description="A share that weights are fetched into once, for all namespaces, as JSON: "
        '{"namespace": "models", "models": ["hf://Qwen/*@main"], "volume": {"nfs": {"server": "nas", "path": "/m"}}}. '
        "Takes the right to make PersistentVolumes. Counts for revisions made from then on.",
    )
    lease_namespace: str = Field("default", description="Namespace of the Lease that the acting operator holds.")
    lease_name: str = Field("headwater-operator", description="Name of that Lease.")
    lease_seconds: float = Field(
        15, ge=3, description="Seconds after which a Lease that is not renewed may be taken by another operator."
    )
    host: str = Field("127.0.0.1", description="Address that metrics and probes are served at.")
    port: int = Field(8090, ge=0, le=65535, description="Port that metrics and probes are served at.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @model_validator(mode="after")
    def _one_cache_for_all(self) -> "OperatorSettings":
        if self.weights_cache and self.namespaces:
            # It makes PersistentVolumes, which are the whole cluster's.
            raise ValueError(
                "--weights-cache is for an operator that looks after all namespaces: leave out --namespaces"
            )
        return self
