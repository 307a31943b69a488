"""Triton's interpreter, with numbers of 16 and 8 bits as a GPU has them. Whoever tests kernels with such imports this.

It keeps bfloat16 as integers, multiplies matrices of those as if they were whole numbers, and cuts off what a GPU
rounds; and in 8 bits it rounds in a way of its own. Here torch converts them.
"""

from typing import Any

import numpy as np
import torch

if not torch.cuda.is_available():
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    _DTYPES = {
        tl.float32: (torch.float32, np.float32),
        tl.float16: (torch.float16, np.float16),
        tl.bfloat16: (torch.bfloat16, np.uint16),
        tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
    }
    """What torch calls them, and what the interpreter keeps them as."""

    _cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    _fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def _about(*kinds: Any) -> bool:
        """Whether these are types of which it has one wrong."""
        return bool({tl.bfloat16, tl.float8e4nv} & set(kinds)) and _DTYPES.keys() >= set(kinds)

    def _converted(source: Any, target: Any) -> Any:
        (source_dtype, _), (target_dtype, kept_as) = _DTYPES[source.dtype.scalar], _DTYPES[target]
        numbers = torch.from_numpy(np.ascontiguousarray(source.data)).view(source_dtype).to(target_dtype)
        return TensorHandle(numbers.view(torch.uint8).numpy().view(kept_as).reshape(source.data.shape), target)

    def cast(self: Any, source: Any, target: Any) -> Any:
        if _about(source.dtype.scalar, target.scalar):
            return _converted(source, target.scalar)
        return _cast(self, source, target)

    def fp_to_fp(self: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if _about(source.dtype.scalar, target.scalar):
            return _converted(source, target.scalar)
        return _fp_to_fp(self, source, target, rounding_mode)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (_converted(each, tl.float32) if _about(each.dtype.scalar) else each for each in (a, b))
        return _dot(self, a, b, *rest)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast, dot
    InterpreterBuilder.create_fp_to_fp = fp_to_fp
