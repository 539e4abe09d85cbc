"""Scores as integers that sort as retrieval ranks: by score, ties by lower index. No two are equal.

key = ordered(score) 2^32 + (2^32 - 1 - index)      int64; ordered: the float's bits, as an int32 of the same order
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_KEY = tl.constexpr(-(2**63))  # below every key


@triton.jit
def order_keys(scores, index):
    """Keys of float32 scores and indices below 2^32, broadcast."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # -0 ties with 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) + (0xFFFFFFFF - index.to(tl.int64))


def scores_and_indices(keys: Tensor) -> tuple[Tensor, Tensor]:
    """What the keys were made of: float32 and int64."""
    ordered = (keys >> 32).to(torch.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)
