"""The router's settings: one table that feeds flags, environment variables, help and docs."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from headwater.resource import RoutingObjective, RoutingPolicy


class RouterSettings(BaseSettings):
    """`headwater route`. Each field is a flag (`--max-attempts`) and a variable (`HEADWATER_ROUTER_MAX_ATTEMPTS`)."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_ROUTER_", extra="forbid")

    groups: ClassVar[dict[str, str]] = {
        "endpoint": "endpoints",
        "policy": "choice of an endpoint",
        "hold_requests": "requests that wait",
        "max_attempts": "attempts and their times",
        "probe_interval": "probes and failures",
        "api_keys": "clients",
        "admin_host": "admin API",
        "host": "server",
    }
    """Headings of the help, each before a field: what is declared from there on is under it."""

    endpoint: list[str] = Field(
        [],
        description="An engine's URL, with optional settings behind it: http[s]://HOST[:PORT][/PATH][,name=N]"
        "[,backend=vllm][,kv_events=tcp://HOST:PORT][,kv_replay=tcp://HOST:PORT][,deployment=N][,weight=N]"
        "[,share=Auto][,api_key_env=NAME][,api_key_file=PATH]. Repeat the flag for each.",
    )
    endpoints_file: Path | None = Field(
        None,
        description="A YAML or JSON list of {url, name, backend, kv_events, kv_replay, deployment, weight, share, "
        "api_key_env, api_key_file}, read again whenever it changes.",
    )
    kubernetes: bool = Field(
        False, description="Find endpoints through the ModelDeployments, EndpointSlices and Pods of a cluster."
    )
    kubernetes_namespaces: list[str] = Field(
        [], description="Namespaces to look for them in. Repeat the flag for each. Default: all of them."
    )
    policy: RoutingPolicy = Field("prefix", description="How an endpoint is chosen for a request.")
    objective: RoutingObjective = Field(
        "latency",
        description="What the prefix policy makes short: all answers to their ends, each one's first token, or all "
        "work together.",
    )
    slo_admission: Literal["all", "attainable"] = Field(
        "all",
        description="Requests whose headers ask for a time to the first token, or between two: all go to where they "
        "should be met or nearly so, or those that no endpoint should meet get a 503.",
    )
    session_header: str = Field("x-session-id", description="Request header that the session policy goes by.")
    tokenizer: list[str] = Field(
        [],
        description="MODEL=FOLDER with the model's tokenizer: its prompts are then also matched against KV events, "
        "token by token. Repeat the flag for each model.",
    )
    tokenizers_folder: Path | None = Field(
        None,
        description="A folder with the tokenizers of further models, each in a folder of the model's name; read when "
        "the model is first asked for.",
    )
    redis_url: str | None = Field(
        None,
        repr=False,
        description="redis://[[USER]:PASSWORD@]HOST[:PORT], or rediss:// for TLS: where routers tell one another which "
        "prompts their endpoints have answered, and how busy these are.",
    )
    hold_requests: int = Field(
        256,
        ge=0,
        description="Requests of a ModelDeployment that are held while none of its endpoints is ready; 0 holds none, "
        "and wakes no model that was scaled to zero.",
    )
    hold_seconds: float = Field(300, gt=0, description="Seconds that a request is held; then it gets a 503.")
    queue_requests: int = Field(
        1024,
        ge=0,
        description="Requests that wait in the router while all endpoints of their model have as many as they run, for "
        "each of these endpoints; 0: none waits, all are sent at once.",
    )
    queue_seconds: float = Field(
        60,
        gt=0,
        description="Seconds that such a request waits; then it gets a 503. One whose turn would come later gets it at "
        "once.",
    )
    max_attempts: int = Field(
        3, ge=1, description="Endpoints that a request is tried on, before the first content of an answer."
    )
    connect_timeout: float = Field(2, gt=0, description="Seconds for a connection to an endpoint.")
    connection_wait: float = Field(
        60, ge=0, description="Seconds that a request may wait where as many connections are open as the system allows."
    )
    answer_timeout: float = Field(
        600, gt=0, description="Seconds until the first content of an answer, over all endpoints that are tried."
    )
    stall_timeout: float = Field(
        120, gt=0, description="Seconds that an answer which has begun may stand still; then it is broken off."
    )
    keep_alive_comments: float = Field(
        0,
        ge=0,
        description="Seconds between the comment lines that a stream gets while it waits for its first content; 0 "
        "sends none. With them its status goes out before it is known.",
    )
    probe_interval: float = Field(1, gt=0, description="Seconds between two looks at an endpoint's health and load.")
    probe_timeout: float = Field(3, gt=0, description="Seconds that a probe may take.")
    probe_failures: int = Field(
        3, ge=1, description="Probes without an answer, in a row, after which an endpoint gets no requests."
    )
    breaker_failures: int = Field(
        5, ge=1, description="Least number of failures for which an endpoint is compared with its peers and ejected."
    )
    breaker_window: float = Field(
        60, gt=0, description="Seconds after which answers and failures count for a third as much."
    )
    breaker_open: float = Field(
        30,
        gt=0,
        description="Seconds that an ejected endpoint gets nothing, then until a probe succeeds; twice that the second "
        "time, and so on.",
    )
    api_keys: Path | None = Field(
        None,
        description="A YAML file with the keys of clients, read again whenever it changes. Without it everybody may "
        "ask.",
    )
    cors_origin: list[str] = Field(
        [],
        description="An origin such as https://chat.example whose pages may ask here from a browser; * is all. Repeat "
        "the flag for each.",
    )
    expose_endpoint: bool = Field(
        False,
        description="Tell clients which endpoint answered and what the choice knew: x-headwater-endpoint and "
        "x-headwater-decision.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Most connections of one client address. Default: nine tenths of those that there can be.",
    )
    max_body_mib: float = Field(32, gt=0, description="Largest request body in MiB; a larger one gets a 413.")
    max_bodies_mib: float | None = Field(
        None,
        gt=0,
        description="Most MiB of request bodies that are held at once. From half of it on, bodies wait for memory; who "
        "waits too long, or finds none left at all, gets a 503. Default: a quarter of the memory that the container, "
        "or else the machine, has.",
    )
    max_header_kib: int = Field(64, ge=1, description="Largest request head in KiB; a larger one gets a 431.")
    admin_host: str = Field("127.0.0.1", description="Address of the admin port.")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of metrics, readiness and the admin API; 0 takes a free one. The clients' port has then "
        "/health and the API only.",
    )
    admin_keys: Path | None = Field(
        None,
        description="A YAML file with the keys of the admin API. Without it the API is there on a loopback address "
        "only.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    access_log: str = Field(
        "off", description="Where to write a JSON line for each request: a file, - for stdout, or off."
    )
    shutdown_timeout: float = Field(30, ge=0, description="Seconds that running answers get to finish after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")


def contradictions(settings: RouterSettings) -> Iterator[str]:
    """What is wrong with settings that are right one by one, in a sentence each."""
    if not settings.endpoint and settings.endpoints_file is None and not settings.kubernetes:
        yield "there is nothing to route to: give --endpoint or --endpoints-file, or --kubernetes"
    if settings.admin_keys is not None and settings.admin_port is None:
        yield "--admin-keys: there is no admin API without --admin-port"
    if settings.admin_port is not None and settings.admin_port == settings.port != 0:
        yield f"--admin-port: {settings.admin_port} is the clients' port"
