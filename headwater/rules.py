"""What must hold of several fields of a ModelDeployment together, for the API server (CEL) and for us."""

import re
from typing import Any, Final

from headwater.values import DURATION, Rule

# Of spec.parallelism

ACCELERATORS_ARE_DIVIDED: Final = Rule(
    "must divide `tensor` x `pipeline` x `data`",
    "self.nodes < 1 || self.tensor * self.pipeline * self.data % self.nodes == 0",
    "nodes",
    lambda it: it.accelerators % it.nodes == 0,
)
KIND_STAYS: Final = Rule(
    "cannot change between 1 and more, which needs other kinds of objects: make a second ModelDeployment that serves "
    "the same name as an alias, wait until it is Ready, then delete this one",
    "(self.nodes > 1) == (oldSelf.nodes > 1)",
    "nodes",
)

# Of spec.model

REVISION_OF_HUB: Final = Rule(
    "is for hf:// sources alone: leave it out, or put the version into the source",
    "self.revision == 'main' || self.source.startsWith('hf://')",
    "revision",
    lambda it: it.revision == "main" or it.source.startswith("hf://"),
    "FieldValueForbidden",
)

# Of spec.autoscaling

BOUNDS_IN_ORDER: Final = Rule("must be at least `min`", "self.max >= self.min", "max", lambda it: it.max >= it.min)
_IS_DURATION: Final = f"matches('^{DURATION}$')"
PANIC_IS_SHORTER: Final = Rule(
    "must be shorter than `stableWindow`",
    f"!self.panicWindow.{_IS_DURATION} || !self.stableWindow.{_IS_DURATION} || "
    "duration(self.panicWindow) < duration(self.stableWindow)",
    "panicWindow",
    lambda it: it.panic_window < it.stable_window,
)

# Of spec

ONE_SAYS_HOW_MANY: Final = Rule(
    "cannot stand beside `replicas`: give a fixed number or bounds, not both",
    "!has(self.replicas) || !has(self.autoscaling)",
    "autoscaling",
    lambda it: it.replicas is None or it.autoscaling is None,
    "FieldValueForbidden",
)
WEIGHTS_REACH_ALL_NODES: Final = Rule(
    "must be ReadWriteMany where a replica spans several nodes, or `weights.cached` false",
    "self.parallelism.nodes <= 1 || !self.weights.cached || !has(self.weights.accessMode) || "
    "self.weights.accessMode != 'ReadWriteOnce'",
    "weights.accessMode",
    lambda it: it.parallelism.nodes == 1 or not it.weights.cached or it.weights.access_mode != "ReadWriteOnce",
)


_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu")


def _gpus_fit(spec: Any) -> bool:
    limits = spec.resources.get("limits", {})
    return all(_fits(str(limits[gpu]), spec) for gpu in _GPUS if gpu in limits)


def _fits(limit: str, spec: Any) -> bool:
    if not re.fullmatch("[0-9]{1,6}", limit):
        return False
    total, used = int(limit) * int(spec.parallelism.nodes), int(spec.parallelism.accelerators)
    return total % used == 0 if spec.backend.args else total in (0, used)


_USED: Final = "self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.data"

GPUS_ARE_USED: Final = Rule(
    "GPUs must be `parallelism.tensor` x `pipeline` x `data` / `nodes`, or 0 for none; a multiple of it only where "
    "`backend.args` make use of more",
    "!has(self.resources) || !has(self.resources.limits) || "
    f"{list(_GPUS)}.all(gpu, !(gpu in self.resources.limits) || "
    "[string(self.resources.limits[gpu])].all(n, n.matches('^[0-9]{1,6}$') && ("
    "has(self.backend.args) && size(self.backend.args) > 0 "
    f"? {_USED} < 1 || int(n) * self.parallelism.nodes % ({_USED}) == 0 "
    f": int(n) == 0 || int(n) * self.parallelism.nodes == {_USED})))",
    "resources.limits",
    _gpus_fit,
)

# Of the whole: names

ALIASES_ARE_FURTHER: Final = Rule(
    "must not hold the resource's own name, which is served already",
    "!has(self.spec.model.aliases) || !(self.metadata.name in self.spec.model.aliases)",
    "spec.model.aliases",
    lambda it: it.metadata.name not in it.spec.model.aliases,
)
ADAPTERS_ARE_OTHERS: Final = Rule(
    "must not have a name of the model itself: the resource's own or an alias",
    "!has(self.spec.adapters) || self.spec.adapters.all(a, a.name != self.metadata.name && "
    "!(has(self.spec.model.aliases) && a.name in self.spec.model.aliases))",
    "spec.adapters",
    lambda it: not {adapter.name for adapter in it.spec.adapters} & {it.metadata.name, *it.spec.model.aliases},
)
