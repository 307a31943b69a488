"""Randomness without state: a number that depends on a seed and a position, and on nothing else.

So a request with a seed gets the same answer whatever else is in the batch, and after a preemption, too.
"""

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators")."""
    mixed = _mix(_mix(seed & _MASK) + (position + 1) * 0x9E3779B97F4A7C15)
    return (mixed >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
