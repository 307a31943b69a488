"""The engine's settings: one table that feeds flags, environment variables, help and docs."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import from_json
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from headwater.openai.request import SamplingDefaults
from headwater.validation import found
from headwater_engine.formats.registry import CALL_FORMAT_OF, HARMONY, THINKING_OF

MOST_RANKS_HERE: Final = 64
"""Processes that share a model on one machine: more than any has GPUs, and each takes a second of a core to start."""


def _read_sampling_defaults(value: Any) -> Any:
    """A flag or a variable is JSON; what is read already stays as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        values = from_json(value)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}, found {found(value)}") from None
    if not isinstance(values, dict):
        raise ValueError(f'must be a JSON object, such as {{"temperature": 0.7}}, found {found(values)}')
    return SamplingDefaults.read(values)


def _format_of_calls(name: str) -> str:
    return _known(name, CALL_FORMAT_OF)


def _format_of_reasoning(name: str) -> str:
    # Harmony's is one format of both.
    return _known(name, [*THINKING_OF, *HARMONY.names])


def _known(name: str, names: Iterable[str]) -> str:
    if name not in (known := ["auto", "none", *names]):
        raise ValueError(f"must be one of {', '.join(known)}, found {found(name)}")
    return name


class EngineSettings(BaseSettings):
    """`headwater serve`. Each field is a flag (`--max-model-len`) and a variable (`HEADWATER_ENGINE_MAX_MODEL_LEN`)."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_ENGINE_", extra="forbid")

    groups: ClassVar[dict[str, str]] = {
        "model": "model",
        "device": "where it runs",
        "max_model_len": "requests and steps",
        "kv_cache_gib": "KV cache",
        "chat_template": "chats and sampling",
        "host": "server",
    }
    """Headings of the help, each before a field: what is declared from there on is under it."""

    model: str = Field(description="A folder, a .gguf file, hf://OWNER/NAME, package://PACKAGE, or random:CONFIG.")
    revision: str = Field("main", description="Branch, tag or commit of an hf:// source.")
    served_model_name: list[str] = Field(
        [],
        description="Names that clients may send as `model`; the first is reported. Default: the source's last part, "
        "without `llm_`.",
    )
    runner: Literal["auto", "generate", "pooling"] = Field(
        "auto",
        description="What the model makes. generate: text; pooling: vectors (embeddings), or scores where it has a "
        "head for them; auto: as its folder says.",
    )
    pooling: Literal["auto", "last", "mean", "cls"] = Field(
        "auto",
        description="How a vector is made of those of a text's tokens: of the last one, of all, of the first one. "
        "auto: as the folder says (1_Pooling), else the mean of encoders and the last one of others.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Of the weights. auto: the checkpoint's own, where this machine computes it fast."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where the model runs. auto: on the first NVIDIA GPU, else on the CPU."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="Ranks, processes that share the model among them: of GPUs, or of CPU cores."
    )
    nodes: int = Field(1, ge=1, description="Machines that have these ranks, each as many.")
    node_rank: int = Field(0, ge=0, description="Number of this machine among them; number 0 serves requests.")
    leader: str | None = Field(
        None, description="HOST:PORT of machine 0, where the others find it; it takes the two ports behind that, too."
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Of a GPU's whole memory, what weights, steps and the KV cache may take. Without effect on a CPU.",
    )
    enforce_eager: bool = Field(
        False, description="Launch each kernel of each step, instead of steps that were recorded."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads, of all ranks here together. Default: all cores of this process."
    )
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Prompt and output tokens of one request, together. Default: what the model can do.",
    )
    max_num_seqs: int = Field(64, ge=1, description="Requests that run at once.")
    max_waiting: int = Field(
        1024, ge=0, description="Requests that may wait beside those that run; one more gets a 503 at once."
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs",
        description="fcfs: first come, first served, and `priority` is refused. priority: lower ones first, and they "
        "may take the place of one that runs.",
    )
    max_batched_tokens: int = Field(
        512,
        ge=1,
        description="Tokens of one step: running requests decode first, prompt chunks take the rest.",
    )
    itl_objective_ms: float | None = Field(
        None,
        gt=0,
        description="Milliseconds between two tokens of a running stream that prompts beside it should not exceed. "
        "Default: none.",
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="Memory for the KV cache in GiB, of all ranks together. Default: a quarter of what is free, 4 at "
        "most; on a GPU what --gpu-memory-utilization leaves.",
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8"] = Field(
        "auto", description="Of keys and values. auto: as the weights; fp8 (e4m3): half the memory, on GPUs only."
    )
    num_blocks: int | None = Field(None, ge=2, description="KV blocks of 16 tokens; wins over --kv-cache-gib.")
    prefix_cache: bool = Field(True, description="Reuse the KV blocks of earlier requests with the same beginning.")
    kv_events: str | None = Field(
        None, description="ZMQ endpoint to publish KV-cache events on, for example tcp://127.0.0.1:5557."
    )
    chat_template: str | None = Field(None, description="A Jinja file instead of the model's own chat template.")
    special_tokens_in_messages: Literal["text", "control"] = Field(
        "text",
        description="What special tokens in a chat's messages are. text: the characters that they are written with; "
        "control: what they are in the template, so that a client may write turns itself.",
    )
    tool_call_parser: Annotated[str, AfterValidator(_format_of_calls)] = Field(
        "auto",
        description="Format in which the model writes calls of functions. auto: the one that its chat template writes; "
        "none: they stay text. The names are in the docs.",
    )
    reasoning_parser: Annotated[str, AfterValidator(_format_of_reasoning)] = Field(
        "auto",
        description="Format in which it writes reasoning. auto: the one that its chat template knows of; none: it "
        "stays text.",
    )
    excess_max_tokens: Literal["refuse", "cut"] = Field(
        "refuse",
        description="What becomes of a `max_tokens` that is more than the context leaves. refuse: a 400; cut: what it "
        "leaves counts.",
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="auto: sampling defaults from the model's generation_config.json; none: the API's own.",
    )
    override_generation_config: Annotated[
        SamplingDefaults | None, NoDecode, BeforeValidator(_read_sampling_defaults)
    ] = Field(None, description="Sampling defaults as JSON, which win over the model's; a request's own win over both.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_mib: float = Field(32, gt=0, description="Largest request body in MiB; a larger one gets a 413.")
    metrics_names: Literal["headwater", "vllm,headwater"] = Field(
        "headwater",
        description="Names of the metrics. vllm,headwater: those that vLLM has, too, for pickers made for it.",
    )
    shutdown_timeout: float = Field(30, ge=0, description="Seconds that running streams get to finish after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    def mistake_of_ranks(self) -> str | None:
        """What cannot be about ranks and nodes, in a sentence; None: nothing."""
        ranks, nodes = self.tensor_parallel_size, self.nodes
        if ranks % nodes:
            return f"--tensor-parallel-size ({ranks}) must be a multiple of --nodes ({nodes}): each has as many ranks"
        if ranks // nodes > MOST_RANKS_HERE:
            return f"--tensor-parallel-size ({ranks}) is {ranks // nodes} ranks on a node: {MOST_RANKS_HERE} at most"
        if self.node_rank >= nodes:
            return f"--node-rank ({self.node_rank}) must be below --nodes ({nodes}): the first one is 0"
        if nodes > 1 and not _is_address(self.leader):
            return f"--leader must be HOST:PORT of node 0 where there are {nodes} nodes; found {self.leader!r}"
        return None


def _is_address(text: str | None) -> bool:
    host, _, port = (text or "").rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) <= 65533
