"""How the GPUs of a replica share a model: parts of layers, stages, attention apart, experts whole.

Layers are shared within a machine, whose links are fast. Over machines go stages, which tell each other little; or,
where each GPU would keep all of a latent cache anyway (MLA), requests: each GPU computes the attention of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headwater.pick.capabilities import BUILD, Capability
from headwater.pick.hardware import GPUS_PER_NODE
from headwater.pick.precision import PRECISIONS
from headwater.pick.shape import Shape
from headwater.pick.workload import Workload

MOST_GPUS: Final = 32
"""Of a replica; more requests are better served by more replicas."""


@dataclass(frozen=True, slots=True)
class Layout:
    """As `spec.parallelism`."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    nodes: int = 1

    @property
    def stage(self) -> int:
        """GPUs of a stage: all that its experts are spread over."""
        return self.tensor * self.data

    @property
    def gpus(self) -> int:
        return self.stage * self.pipeline

    def fullest(self, shape: Shape) -> float:
        """What the stage with the most layers has, over what each would have if layers could be cut."""
        return -(-shape.layers // self.pipeline) * self.pipeline / shape.layers


def shares_layers(workload: Workload, able: Capability) -> bool:
    return workload.accelerator.vendor in able.tensor


def layouts(workload: Workload, shape: Shape, able: Capability) -> list[Layout]:
    """Those that the backend could use, the fewest GPUs first: powers of two, unless the workload wants something."""
    tried = [_wanted(workload)] if workload.spread > 1 else list(_usual(workload, shape, able))
    return [
        made
        for each in tried
        if each.gpus <= workload.gpus and (made := _with_experts(workload, shape, able, each)) is not None
    ]


def _wanted(workload: Workload) -> Layout:
    gpus = workload.spread
    usual = gpus if workload.accelerator.vendor == "cpu" else -(-gpus // GPUS_PER_NODE)
    return Layout(workload.tensor or 1, workload.pipeline, workload.data, workload.expert, workload.nodes or usual)


def _usual(workload: Workload, shape: Shape, able: Capability) -> Iterator[Layout]:
    accelerator = workload.accelerator
    yield Layout()
    if not shares_layers(workload, able) or accelerator.vendor == "cpu" or accelerator.slice is not None:
        return  # a network is slow, and no link joins slices
    latent = shape.kv_heads == 1 and shape.expert_count
    gpus = 2
    while gpus <= (MOST_GPUS if able.nodes else GPUS_PER_NODE):
        nodes = -(-gpus // GPUS_PER_NODE)
        yield Layout(gpus // nodes, pipeline=nodes, nodes=nodes) if able.pipeline else Layout(gpus, nodes=nodes)
        if latent and able.data:
            yield Layout(data=gpus, expert=True, nodes=nodes)
        gpus *= 2


def _with_experts(workload: Workload, shape: Shape, able: Capability, layout: Layout) -> Layout | None:
    """With experts whole where their blocks would be cut; None where the model cannot be spread like that."""
    if not shape.divides(layout.tensor) or layout.pipeline > shape.layers:
        return None
    if layout.gpus > 1 and not shares_layers(workload, able):
        return None
    if layout.gpus > 1 and workload.accelerator.slice is not None:
        return None
    whole = layout.expert or workload.expert or cuts_blocks(workload, shape, layout.stage)
    if whole and shape.expert_count and (not able.experts or shape.expert_count % layout.stage):
        return None
    built = able.backend == "tensorrt-llm" and workload.build_time >= BUILD
    if built and (whole or layout.gpus > layout.tensor):
        return None  # engines that are built have parts of layers alone
    return Layout(layout.tensor, layout.pipeline, layout.data, whole and layout.stage > 1, layout.nodes)


def cuts_blocks(workload: Workload, shape: Shape, gpus: int) -> bool:
    """Whether a GPU's part of an expert would end within a block of rows that share a scale, which servers refuse."""
    block = PRECISIONS[workload.known_quantization].block
    if block == 1 or not shape.expert_width or not workload.in_blocks:
        return False
    return shape.expert_width % (gpus * block) != 0
