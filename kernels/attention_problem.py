"""What every attention kernel is launched with: the shared part of the argument tables, derived from tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .precision import dot_precision

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AttentionProblem:
    """Inputs and options of one call, as the ops pass them."""

    q: Tensor  # (B, H, Sq, D), last dim contiguous
    k: Tensor  # (B, Hk, Sk, D), last dim contiguous
    v: Tensor | None  # (B, Hk, Sk, Dv), last dim contiguous; None where only scores are wanted
    lo: Tensor | None  # int32 (B or 1, Sq or 1), contiguous
    hi: Tensor | None  # int32, as lo
    bias: Tensor | None  # float or bool, (B or 1, H or 1, Sq or 1, Sk or 1)
    sink: Tensor | None  # float32 (H,)
    gate: Tensor | None  # float32 (H,)
    scale: float
    softcap: float
    dropout_p: float = 0.0
    seed: Tensor | None = None  # int64, 0-dim

    @property
    def B(self) -> int:
        return self.q.shape[0]

    @property
    def H(self) -> int:
        return self.q.shape[1]

    @property
    def Sq(self) -> int:
        return self.q.shape[2]

    @property
    def D(self) -> int:
        return self.q.shape[3]

    @property
    def Hk(self) -> int:
        return self.k.shape[1]

    @property
    def Sk(self) -> int:
        return self.k.shape[2]

    @property
    def Dv(self) -> int:
        return self.D if self.v is None else self.v.shape[3]

    @property
    def rows(self) -> int:
        """Queries that share keys: those of all heads of a group, stacked."""
        return self.H // self.Hk * self.Sq

    @property
    def plain(self) -> bool:
        """Whether products serve as scores without any work on them."""
        return not self.softcap and self.scale > 0 and (self.bias is None or self.bias.dtype == torch.bool)

    def fits(self, block_n: int) -> bool:
        """Whether a tile of so many keys may hold all that a query sees."""
        return self.lo is not None or self.Sk <= block_n

    def scores(self) -> dict[str, object]:
        """Arguments that make q k^T into masked scores."""
        softcap = self.softcap
        span_strides = (0, 0) if self.lo is None else _strides(self.lo)
        bias_strides = (0, 0, 0, 0) if self.bias is None else _strides(self.bias)
        for_all_keys = self.bias is not None and self.bias.shape[3] == 1
        return {
            "lo": self.lo,
            "hi": self.hi,
            **dict(zip(("stride_sb", "stride_sm"), span_strides, strict=True)),
            "bias": self.bias,
            **dict(zip(("stride_bb", "stride_bh", "stride_bm"), bias_strides[:3], strict=True)),
            "stride_bn": None if for_all_keys else bias_strides[3],
            "unit": self.scale / softcap if softcap else self.scale * _LOG2_E if self.plain else self.scale,
            "softcap": softcap or None,
            "H": self.H,
            "Hk": self.Hk,
            "Sq": self.Sq,
            "Sk": self.Sk,
            "PLAIN": self.plain,
            "D": self.D,
            "BLOCK_D": _block(self.D),
            "PRECISION": dot_precision(self.q.dtype),
        }

    def values(self) -> dict[str, object]:
        """Arguments that weigh the values: sink, gate, dropout."""
        return {
            "sink": self.sink,
            "gate": self.gate,
            "seed": self.seed if self.dropout_p else None,
            "drop_below": min(int(self.dropout_p * 2**32), 2**32 - 1),
            "share": 1.0 / (1.0 - self.dropout_p),
            "Dv": self.Dv,
            "BLOCK_DV": _block(self.Dv),
        }


def _strides(t: Tensor) -> tuple[int, ...]:
    """Strides in elements, 0 where a dimension is broadcast."""
    return tuple(0 if size == 1 else stride for size, stride in zip(t.shape, t.stride(), strict=True))


def _block(dim: int) -> int:
    """The power of two that a tile's product needs for this head size."""
    return max(triton.next_power_of_2(dim), 16)
