"""Flags that people know from other servers, and what does the same here."""

from collections.abc import Mapping
from typing import Final

_ENGINE: Final = {
    "--model": "the model comes first, without a flag: headwater serve MODEL",
    "--model-path": "the model comes first, without a flag: headwater serve MODEL",
    "--ctx-size": "did you mean --max-model-len?",
    "--context-length": "did you mean --max-model-len?",
    "--max-total-tokens": "did you mean --max-model-len?",
    "--max-running-requests": "did you mean --max-num-seqs?",
    "--max-concurrent-requests": "did you mean --max-num-seqs?",
    "--max-num-batched-tokens": "did you mean --max-batched-tokens?",
    "--max-batch-prefill-tokens": "did you mean --max-batched-tokens?",
    "--chunked-prefill-size": "did you mean --max-batched-tokens?",
    "--enable-chunked-prefill": "prompts always come in chunks; --max-batched-tokens says how large a step is",
    "--mem-fraction-static": "did you mean --gpu-memory-utilization?",
    "--cuda-memory-fraction": "did you mean --gpu-memory-utilization?",
    "--tp": "did you mean --tensor-parallel-size?",
    "-tp": "did you mean --tensor-parallel-size?",
    "--tp-size": "did you mean --tensor-parallel-size?",
    "--num-shard": "did you mean --tensor-parallel-size?",
    "--nnodes": "did you mean --nodes?",
    "--dist-init-addr": "did you mean --leader?",
    "--master-addr": "did you mean --leader?",
    "--hostname": "did you mean --host?",
    "--model-id": "the model comes first, without a flag: headwater serve MODEL",
    "-m": "the model comes first, without a flag: headwater serve MODEL",
    "--block-size": "a block has 16 tokens here; --num-blocks says how many there are",
    "--enable-prefix-caching": "it is on; --no-prefix-cache turns it off",
    "--no-enable-prefix-caching": "did you mean --no-prefix-cache?",
    "--disable-radix-cache": "did you mean --no-prefix-cache?",
    "--kv-events-config": "did you mean --kv-events, which takes an address such as tcp://127.0.0.1:5557?",
    "--schedule-policy": "did you mean --scheduling-policy?",
    "--disable-cuda-graph": "did you mean --enforce-eager?",
    "--api-key": "an engine asks for no key; a router before it does: headwater route --api-keys FILE",
    "--allowed-origins": "a router before the engine does that: headwater route --cors-origin ORIGIN",
    "--trust-remote-code": "code that comes with a model is never run here",
    "--disable-log-requests": "requests are not logged; --log-level warning leaves out what else is",
    "--data-parallel-size": "replicas are what headwater up starts, with spec.replicas in its file",
    "-dp": "replicas are what headwater up starts, with spec.replicas in its file",
    "-p": "did you mean --port?",
}
_ROUTER: Final = {
    "--worker-urls": "did you mean --endpoint, once for each?",
    "--static-backends": "did you mean --endpoint, once for each?",
    "--backend": "it stands behind the URL: --endpoint http://HOST:PORT,backend=vllm",
    "--api-key": "keys stand in a file: headwater keys new NAME --file FILE, then --api-keys FILE",
    "--allowed-origins": "did you mean --cors-origin?",
    "--routing-logic": "did you mean --policy?",
    "--session-key": "did you mean --session-header?",
    "--prometheus-port": "did you mean --admin-port?",
    "--service-discovery": "did you mean --kubernetes?",
    "-p": "did you mean --port?",
}
HINTS: Final[Mapping[str, Mapping[str, str]]] = {"serve": _ENGINE, "route": _ROUTER}
"""By command and flag; what is a flag of ours is none of these."""
