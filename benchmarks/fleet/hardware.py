"""What the modelled engines cost: constants of a step, each with where it comes from.

A step takes

    step + prefill * prompt tokens + pair * (prompt tokens x tokens before each) + decode * answers + kv * their context

seconds. Weights, KV sizes and operations follow from the models' published shapes (config.json), bandwidth and
arithmetic from NVIDIA's data sheet of the H100 SXM (3.35 TB/s, 989 TFLOP/s of dense bfloat16).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    name: str
    step: float
    """Seconds of a step that has next to nothing to do: weights are read, kernels launched."""
    prefill: float
    """Seconds for a prompt token in it."""
    pair: float
    """Seconds for a prompt token to attend to one before it: what makes long prompts cost more than linear."""
    decode: float
    """Seconds for an answer that gets a token in it."""
    kv: float
    """Seconds to read the KV of one token."""
    kv_tokens: int
    """That there is room for."""
    budget: int = 8192
    """Tokens in a step; vLLM's `max_num_batched_tokens` on an H100."""
    max_running: int = 256
    """vLLM's `max_num_seqs`; it takes 1,024 on an H100, where KV is the limit before."""
    max_waiting: int | None = None
    """Requests that may wait; more are turned down with 429. None: any number, as vLLM has it."""


H100_8B = Hardware(
    name="8B on H100",
    # Llama-3.1-8B in bfloat16, one at a time with CUDA graphs: 5.1 ms (floor 4.5 ms: 15 GB of weights at 3.35 TB/s).
    step=5.1e-3,
    # 16.1 GFLOP a token at 65 % of 989 TFLOP/s; 40,000 tokens/s. On an H200 our kernels read 41,000 to 47,000
    # (benchmarks/results/gpu_kernels.md).
    prefill=25e-6,
    # 4 x 32 layers x 4,096 = 0.52 MFLOP at 400 TFLOP/s.
    pair=1.3e-9,
    # The same 16.1 GFLOP, products of few rows; on an H200 steps grow by 46 us a sequence of 1,040 tokens, KV included.
    decode=20e-6,
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes at 85 % of 3.35 TB/s.
    kv=46e-9,
    # 0.9 x 80 GB less 16 GB of weights and 4 GB of activations, by 131,072 bytes.
    kv_tokens=397_000,
)

H100_70B = Hardware(
    name="70B on 4 H100",
    # Llama-3.1-70B in bfloat16: 141 GB on four at 3.35 TB/s are 10.5 ms, by the 8B's ratio to its floor 11.9 ms; and
    # 160 all-reduces of about 16 us.
    step=14.5e-3,
    # 141 GFLOP a token on four at 60 % of 989 TFLOP/s, and a tenth for all-reduces.
    prefill=65e-6,
    # 4 x 80 layers x 8,192 = 2.6 MFLOP, on four.
    pair=1.6e-9,
    decode=50e-6,
    # 2 x 80 layers x 8 heads x 128 x 2 bytes = 327,680 bytes, on four.
    kv=29e-9,
    # 0.9 x 4 x 80 GB less 141 GB and 12 GB, by 327,680 bytes.
    kv_tokens=412_000,
)

CPU_135M = Hardware(
    name="135M on 2 cores",
    # Our engine with SmolLM2-135M on two Zen 4 cores, docs/performance.md: 85.9 tokens/s one at a time,
    step=11.6e-3,
    # 273.5 ms for 512 prompt tokens,
    prefill=0.5e-3,
    # of these 18.4 ms of attention,
    pair=0.14e-6,
    # 32.6 ms for 32 requests,
    decode=0.43e-3,
    # of these 7.3 ms of attention to about 288 tokens each.
    kv=0.8e-6,
    # 1.5 GiB by 46,080 bytes a token.
    kv_tokens=35_000,
    # A CPU engine's own pace: 512 prompt tokens are a quarter of a second.
    budget=512,
    max_running=64,
)

ALL = (H100_8B, H100_70B, CPU_135M)
