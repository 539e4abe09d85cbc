"""How products of float32 tiles are made."""

from __future__ import annotations

import torch
from triton import knobs


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot for operands of this dtype.

    float32 is split into three bfloat16 parts and six products on the tensor cores: as exact as float32 products, twice
    as fast as the FMA units of an H100. It means nothing for 16-bit operands, and the interpreter has no such split.
    """
    return "bf16x6" if dtype == torch.float32 and not knobs.runtime.interpret else "ieee"
