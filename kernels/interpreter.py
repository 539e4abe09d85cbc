"""What Triton's interpreter needs of us; imported where it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_with_index(tensor: type, scope: Any) -> None:
    """Its scalars are arrays of one element, which numpy 2.4 no longer takes for the bound of a range."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """Summed in float64, so that an element has the same bits in tiles of every shape, as in hardware; BLAS differs."""
    product = np.matmul(a.data, b.data, dtype=np.float64) + d.data
    return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)


interpreter._patch_lang_tensor = _patch_tensor_with_index
interpreter.InterpreterBuilder.create_dot = _dot
