"""Which plan: the number of GPUs of a replica, and how many replicas, by memory and by the goals for speed and cost."""

import math
from collections.abc import Iterator
from dataclasses import replace

from headwater.pick.arithmetic import lack as lack_of_memory
from headwater.pick.capabilities import Capability
from headwater.pick.layout import layouts
from headwater.pick.memory import Plan, plan_with
from headwater.pick.shape import Shape
from headwater.pick.speed import speed_of
from headwater.pick.workload import Workload


def find_plan(workload: Workload, shape: Shape, able: Capability) -> Plan | None:
    """The plan that does all that is wanted with the fewest GPUs; where none does, the one that does most.

    None where not even one request fits, or can be as fast as is wanted.
    """
    plans = [
        plan
        for memory in _by_memory(workload, shape, able)
        if (plan := _within_goals(workload, shape, memory)) is not None
    ]
    if workload.offline:
        return max(plans, key=lambda plan: speed_of(shape, workload, plan).tokens.middle, default=None)
    enough = [plan for plan in plans if plan.replicas >= wanted_replicas(workload, shape, plan)]
    if enough:
        return min(enough, key=lambda plan: (plan.gpus, plan.layout.gpus, plan.layout.data))
    return max(plans, key=lambda plan: (plan.requests * plan.replicas, -plan.layout.gpus), default=None)


def _by_memory(workload: Workload, shape: Shape, able: Capability) -> Iterator[Plan]:
    for layout in layouts(workload, shape, able):
        if layout.gpus <= affordable_gpus(workload) and (plan := plan_with(workload, shape, able, layout)):
            yield plan


def affordable_gpus(workload: Workload) -> int:
    if workload.budget is None or not (price := workload.gpu_price):
        return workload.gpus
    return min(workload.gpus, int(workload.budget / price))


def _within_goals(workload: Workload, shape: Shape, plan: Plan) -> Plan | None:
    """With as many requests at once as leave each as fast as is wanted, and as many replicas as that takes."""
    most = affordable_gpus(workload) // plan.layout.gpus
    requests = plan.requests
    while requests >= 1:
        tried = replace(plan, requests=requests)
        tried = replace(tried, replicas=max(1, min(most, wanted_replicas(workload, shape, tried))))
        if workload.offline:
            tried = replace(tried, replicas=most)
        if is_fast(workload, shape, tried):
            return tried
        requests = requests * 3 // 4
    return None


def is_fast(workload: Workload, shape: Shape, plan: Plan) -> bool:
    if workload.ttft is None and workload.tpot is None:
        return True
    speed = speed_of(shape, workload, plan)
    first = workload.ttft is None or speed.first.middle <= workload.ttft
    return first and (workload.tpot is None or speed.each.middle <= workload.tpot)


def wanted_replicas(workload: Workload, shape: Shape, plan: Plan) -> int:
    """For all requests at once, and for the tokens that so many requests a second want."""
    replicas = math.ceil(workload.concurrency / plan.requests)
    if workload.rate is None:
        return replicas
    full = replace(plan, replicas=1)
    each = speed_of(shape, workload.model_copy(update={"concurrency": plan.requests}), full).tokens.middle
    return max(replicas, math.ceil(workload.rate * workload.output_tokens / each))


def lack(workload: Workload, shape: Shape, able: Capability) -> str:
    """Why there is no plan, to follow a backend's name."""
    plans = list(_by_memory(workload, shape, able))
    if not plans and affordable_gpus(workload) < workload.gpus:
        return f"needs more GPUs than --budget {workload.budget:g} pays at {workload.gpu_price:g} an hour each"
    if not plans:
        return lack_of_memory(workload, shape, able)
    alone = [speed_of(shape, workload, replace(plan, requests=1, replicas=1)) for plan in plans]
    if workload.tpot is not None and (each := min(speed.each.middle for speed in alone)) > workload.tpot:
        return f"takes {each:.3f} s a token even for one request, and --tpot allows {workload.tpot:g}"
    first = min(speed.first.middle for speed in alone)
    return f"takes {first:.2f} s to the first token even for one request, and --ttft allows {workload.ttft or 0:g}"
