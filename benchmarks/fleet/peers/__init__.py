"""What other routers do, rebuilt from what they publish of it, with their defaults. None of it is their code.

They look at prefixes through our index, sized as they size theirs, so that what differs is the rule and not how a
prompt is cut into blocks; what our 128 to some thousand tokens a block take from their precision is within a sixteenth.
"""

import random
from collections.abc import Callable

from benchmarks.fleet.peers.aibrix import AIBrix
from benchmarks.fleet.peers.base import Only
from benchmarks.fleet.peers.dynamo import Dynamo
from benchmarks.fleet.peers.kubeai import KubeAI
from benchmarks.fleet.peers.llmd import LLMD, LLMDAffinity, LLMDAffinityTuned, LLMDPrecise
from benchmarks.fleet.peers.production_stack import ProductionStack
from benchmarks.fleet.peers.smg import SMG, VLLMRouter
from headwater_router.picker.base import Picker
from headwater_router.picker.policies import Policies

PEERS: dict[str, Callable[[random.Random], Picker]] = {
    "smg cache_aware": SMG,
    "vllm-router cache_aware": VLLMRouter,
    "dynamo": Dynamo,
    "llm-d": LLMD,
    "llm-d precise": LLMDPrecise,
    "llm-d affinity": LLMDAffinity,
    "llm-d affinity, tuned": LLMDAffinityTuned,
    "aibrix prefix-cache": AIBrix,
    "kubeai": KubeAI,
    "production-stack": ProductionStack,
}

PROBE_SECONDS: dict[str, float] = {"llm-d": 0.05, "llm-d precise": 0.05}
"""Of those that look at the engines' gauges more often than we do."""


def policies_of(name: str, rng: random.Random) -> Policies:
    """One that every deployment has."""
    return Only(PEERS[name](rng))
