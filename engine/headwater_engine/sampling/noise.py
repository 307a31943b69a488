"""Randomness without state: noise that depends on a seed, a position in the answer and a token, and on nothing else.

So a request with a seed gets the same answer whatever else is in the batch, and after a preemption, too. Here a seed
and a position become a key of two words, on the host, by SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators"); the kernels make the noise of each token from it (`kernels/reference_sampling.py`).
"""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def noise_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[R] uint64 seeds, [R] integer positions -> [2, R] int32: the low and the high word of each row's key."""
    keys = _mix(_mix(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * _STEP)
    return keys.astype("<u8").view("<i4").reshape(-1, 2).T


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
