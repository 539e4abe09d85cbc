"""What all modules share: the choice between fused operations and plain PyTorch, at any time, on the same weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastfuse import attention as fused
from fastfuse.attention import AttentionOutput
from fastfuse.nn import eager
from fastfuse.span import KeySpan

Attention = Literal["fused", "eager"]


class AttentionModule(nn.Module):
    """A module whose `attention` says how it computes: "fused" by fastfuse's operations, "eager" in plain PyTorch."""

    def __init__(self, attention: Attention = "fused"):
        super().__init__()
        self.attention = attention

    @property
    def attention(self) -> Attention:
        """Either "fused" or "eager"; may be set at any time, weights stay as they are."""
        return self._attention

    @attention.setter
    def attention(self, attention: Attention) -> None:
        if attention not in ("fused", "eager"):
            raise ValueError(f'attention: expected "fused" or "eager", got {attention!r}')
        self._attention: Attention = attention

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        span: KeySpan | None = None,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        dropout_p: float = 0.0,
        return_map: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`fastfuse.cross_attention` in the chosen way: out (B, H, Sq, Dv), and the map where one is asked for."""
        operation = fused.cross_attention if self.attention == "fused" else eager.cross_attention
        result = operation(q, k, v, span=span, bias=bias, gate=gate, dropout_p=dropout_p, return_map=return_map)
        return (result.out, result.map) if isinstance(result, AttentionOutput) else (result, None)


def set_attention(module: nn.Module, attention: Attention) -> None:
    """Set `attention` on every module of fastfuse.nn within `module`, itself included."""
    for part in module.modules():
        if isinstance(part, AttentionModule):
            part.attention = attention


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, S, E) -> (B, H, S, E / H), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) -> (B, S, H * D)."""
    return x.transpose(1, 2).flatten(2)


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ValueError unless the heads divide the width."""
    if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads: expected a divisor of embed_dim {embed_dim}, got {num_heads}")


def check_sequence(name: str, x: Tensor, width: int) -> None:
    """Raise ValueError unless x is (batch, length, width)."""
    if x.dim() != 3 or x.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (batch, length, {width}), got {tuple(x.shape)}")
