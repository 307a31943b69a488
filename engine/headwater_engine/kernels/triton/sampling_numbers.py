"""Numbers of sampling, as `kernels/reference_sampling.py` defines them, to the last bit: order, noise, log, weight."""

import triton
import triton.language as tl

from headwater_engine.kernels.interface import WEIGHT_ONE

# Of the batch's numbers, which lie in one tensor: where each of them begins differs from step to step, and no kernel
# must be compiled anew for that while requests wait.
OF_BATCH = [
    "inverse_temperatures",
    "top_k",
    "top_p",
    "min_weight",
    "keys",
    "lines",
    "repetition",
    "presence",
    "frequency",
    "mask_lines",
]
_WEIGHT_ONE = tl.constexpr(WEIGHT_ONE)
_SHIFT = tl.constexpr(12582912.0)
_LARGEST_V = tl.constexpr(1 - 2.0**-24)
_UNIT_V = tl.constexpr(2.0**-31)


@triton.jit
def load(logits, first, size, COLUMNS: tl.constexpr):
    """Tokens and their logits; behind the last token, what no draw falls on."""
    token = first + tl.arange(0, COLUMNS)
    value = tl.load(logits + token, mask=token < size, other=float("-inf"))
    return token, value


@triton.jit
def order_of(value):
    """An integer in the order of the value; -0 is 0."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise_of(token, low, high):
    bits = _mix(_mix(token + low) + high)
    v = tl.minimum(((bits >> 1).to(tl.int32).to(tl.float32) + 0.5) * _UNIT_V, _LARGEST_V)
    u = 1.0 - v
    # Divided by 1 where it would be by 0, and is not taken.
    precise = _log_of(u) * tl.div_rn(v, tl.where(u == 1.0, 1.0, u - 1.0))
    return -_log_of(tl.where(u == 1.0, v, precise))


@triton.jit
def _log_of(x):
    bits = x.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    r = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    p = r * 7.0376836292e-2 + -1.1514610310e-1
    p = p * r + 1.1676998740e-1
    p = p * r + -1.2420140846e-1
    p = p * r + 1.4249322787e-1
    p = p * r + -1.6668057665e-1
    p = p * r + 2.0000714765e-1
    p = p * r + -2.4999993993e-1
    p = p * r + 3.3333331174e-1
    square = r * r
    y = p * r * square + n.to(tl.float32) * -2.12194440e-4 - 0.5 * square
    return r + y + n.to(tl.float32) * 0.693359375


@triton.jit
def weight_of(x):
    """e^x of x <= 0, in units of 1 / WEIGHT_ONE."""
    x = tl.maximum(x, -30.0)
    n = (x * 1.44269504 + _SHIFT) - _SHIFT
    r = x - n * 0.693359375 - n * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    return (p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) * _WEIGHT_ONE).to(tl.int32)
