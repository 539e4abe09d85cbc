"""Checks of what users pass: each error names the argument, what came and what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastfuse.span import KeySpan

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAPS = (None, "mean", "full", "keys")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: KeySpan | None,
    bias: Tensor | None,
    sink: Tensor | None,
    gate: Tensor | None,
    scale: float | None,
    softcap: float,
    dropout_p: float,
    seed: int | None,
    return_map: str | None,
) -> tuple[int, int, int, int, int, int]:
    """The arguments of `cross_attention`: their B, H, Sq, Sk, D, Dv. Raises TypeError or ValueError."""
    for name, t, sizes in (("q", q, "(B, H, Sq, D)"), ("k", k, "(B, Hk, Sk, D)"), ("v", v, "(B, Hk, Sk, Dv)")):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor {sizes}, got {type(t).__name__}")
        if t.dim() != 4:
            raise ValueError(f"{name}: expected shape {sizes}, got {tuple(t.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k, v: expected one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if q.dtype not in _FLOATS:
        raise TypeError(f"q: expected float32, bfloat16, float16 or float64, got {q.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v: expected one device, got {q.device}, {k.device} and {v.device}")
    B, H, Sq, D = q.shape
    Bk, Hk, Sk, Dk = k.shape
    Bv, Hv, Sv, Dv = v.shape
    if Bk != B or Dk != D or D == 0:
        raise ValueError(
            f"k: expected (B, Hk, Sk, D) with B = {B}, D = {D} >= 1 of q {tuple(q.shape)}, got {tuple(k.shape)}"
        )
    if Bv != B or Hv != Hk or Sv != Sk or Dv == 0:
        raise ValueError(
            f"v: expected (B, Hk, Sk, Dv >= 1) with the B, Hk, Sk of k {tuple(k.shape)}, got {tuple(v.shape)}"
        )
    if Hk == 0 or H == 0 or H % Hk:
        raise ValueError(f"k: its head count must divide q's, got q {tuple(q.shape)} and k {tuple(k.shape)}")
    if span is not None:
        _span(span, q)
    if bias is not None:
        _bias(bias, q, (B, H, Sq, Sk))
    if sink is not None:
        _per_head("sink", sink, q, ((H,),))
    if gate is not None:
        _per_head("gate", gate, q, ((), (H,)))
    if scale is not None:
        _finite("scale", scale)
    if softcap != 0:
        _finite("softcap", softcap)
        if softcap < 0:
            raise ValueError(f"softcap: expected a number >= 0 (0 is off), got {softcap}")
    if dropout_p != 0:
        _finite("dropout_p", dropout_p)
        if not 0 <= dropout_p < 1:
            raise ValueError(f"dropout_p: expected 0 <= dropout_p < 1, got {dropout_p}")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"seed: expected an int or None, got {type(seed).__name__}")
    if return_map not in _MAPS:
        raise ValueError(f'return_map: expected None, "mean", "full" or "keys", got {return_map!r}')
    return B, H, Sq, Sk, D, Dv


def _span(span: KeySpan, q: Tensor) -> None:
    if not isinstance(span, KeySpan):
        raise TypeError(f"span: expected a fastfuse.KeySpan, got {type(span).__name__}; other masks go through bias")
    B, _, Sq, _ = q.shape
    for end in (span.lo, span.hi):
        if end.shape[0] not in (1, B) or end.shape[1] not in (1, Sq):
            raise ValueError(
                f"span: expected ends of shape ({B} or 1, {Sq} or 1) for q {tuple(q.shape)}, got {tuple(end.shape)}"
            )
    if span.lo.device != q.device:
        raise ValueError(f"span: expected device {q.device} as q, got {span.lo.device}")


def _bias(bias: Tensor, q: Tensor, full: tuple[int, int, int, int]) -> None:
    if not isinstance(bias, Tensor) or not (bias.dtype == torch.bool or bias.dtype in _FLOATS):
        came = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"bias: expected a float or bool tensor, got {came}")
    sizes = bias.shape
    if len(sizes) > 4 or any(n not in (1, m) for n, m in zip(reversed(sizes), reversed(full), strict=False)):
        raise ValueError(f"bias: expected a shape broadcastable to (B, H, Sq, Sk) = {full}, got {tuple(sizes)}")
    if bias.device != q.device:
        raise ValueError(f"bias: expected device {q.device} as q, got {bias.device}")


def _per_head(name: str, t: Tensor, q: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if not isinstance(t, Tensor) or t.dtype not in _FLOATS:
        came = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"{name}: expected a float tensor, got {came}")
    if tuple(t.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{name}: expected shape {wanted} for q {tuple(q.shape)}, got {tuple(t.shape)}")
    if t.device != q.device:
        raise ValueError(f"{name}: expected device {q.device} as q, got {t.device}")


def _finite(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
