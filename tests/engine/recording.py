"""A stand-in for CUDA graphs: it writes down which operations ran on which tensors, and does just those again.

So what was decided while it was recorded stays decided, and what is read must lie where it lay. As with a graph, the
output is the same memory each time. It sees operations of torch, and so needs kernels that are made of nothing else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, LayerCache, Replay
from headwater_engine.kernels.reference import TorchKernels


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result

    def play(self) -> None:
        for func, args, kwargs, before in self.calls:
            for old, new in zip(before, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def record(run: Callable[[], Tensor]) -> Replay:
    run()
    with _Tape() as tape:
        output = run()

    def replay() -> Tensor:
        tape.play()
        return output

    return replay


class RecordableKernels(TorchKernels):
    """Whose attention of one query a sequence asks for no number, as a GPU's does not."""

    def paged_attention(
        self, queries: Tensor, cache: LayerCache, batch: AttentionBatch, *, scale: float, **options: Any
    ) -> Tensor:
        one_each = batch.longest_query == 1 and len(queries) == len(batch.context_lengths)
        if not one_each or any(value is not None for value in options.values()):
            return super().paged_attention(queries, cache, batch, scale=scale, **options)
        width = -(-batch.longest_context // BLOCK_SIZE)
        tables = batch.block_tables[:, :width].long().clamp(0, len(cache.keys) - 1)  # behind the context is anything
        keys, values = (x[tables].flatten(1, 2).float() for x in (cache.keys, cache.values))
        grouped = queries.float().unflatten(1, (keys.shape[2], -1))
        scores = torch.einsum("skgd,sckd->skgc", grouped, keys) * scale
        visible = torch.arange(keys.shape[1]) < batch.context_lengths.unsqueeze(1)
        weights = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1)
        return torch.einsum("skgc,sckv->skgv", weights, values).flatten(1, 2).to(queries.dtype)
