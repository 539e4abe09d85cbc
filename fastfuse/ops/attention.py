"""The attention ops: forward, backward and map, and their autograd.

Forward saves its inputs, out and lse_pair, the same on every backend, so that one backend's forward pairs with
another's backward. lse_pair (2, B, H, Sq) is the log-sum-exp in float32, natural log, and what that rounding left out:
exp(s - lse) with one float32 would be off by 2^-24 |lse|, far more than eager PyTorch is. A backend may have an autograd
of its own for calls that nobody watches, and keep more in it. Double backward goes through the dense formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfuse import reference
from fastfuse.backends import module_for
from fastfuse.ops.registry import register
from fastfuse.ops.transforms import apply, is_plain


def _kernels(op: str, q: Tensor, Dv: int, backend: str) -> Any:
    return module_for(op, q.device, q.dtype, (q.shape[3], Dv), backend)


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *options, backend = rest
    return _kernels("attention_fwd", q, v.shape[3], backend).attention_fwd(q, k, v, *options)


def _backward(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, backend = rest
    return _kernels("attention_bwd", q, v.shape[3], backend).attention_bwd(dout, dlse, q, k, v, *options)


def _map(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    *options, backend = rest
    return _kernels("attention_map", q, 0, backend).attention_map(q, k, *options)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, H, Sq, _D = q.shape
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(B, H, Sq, v.shape[3]), q.new_empty(2, B, H, Sq, dtype=lse_dtype)


def _fake_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _lo, _hi, bias, sink, gate, *_, needs, _backend = rest
    inputs = zip((q, k, v, bias, sink, gate), needs, strict=True)
    return tuple(q.new_empty(0) if t is None or not need else t.new_empty(t.shape) for t, need in inputs)


def _fake_map(q: Tensor, k: Tensor, lo: Any, hi: Any, bias: Any, lse_pair: Tensor, *rest: Any) -> Tensor:
    mode = rest[-2]
    B, H, Sq, _D = q.shape
    Sk = k.shape[2]
    return lse_pair.new_empty({"full": (B, H, Sq, Sk), "mean": (B, Sq, Sk), "keys": (B, Sk)}[mode])


_MASK = "Tensor? lo, Tensor? hi, Tensor? bias"
_OPTIONS = "float scale, float softcap, float dropout_p, Tensor? seed"
register(
    f"attention_fwd(Tensor q, Tensor k, Tensor v, {_MASK}, Tensor? sink, Tensor? gate, {_OPTIONS}, str backend)"
    " -> (Tensor out, Tensor lse_pair)",
    _forward,
    _fake_forward,
)
register(
    f"attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, {_MASK}, Tensor? sink, Tensor? gate, "
    f"Tensor out, Tensor lse_pair, {_OPTIONS}, bool[] needs, str backend)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsink, Tensor dgate)",
    _backward,
    _fake_backward,
)
register(
    f"attention_map(Tensor q, Tensor k, {_MASK}, Tensor lse_pair, float scale, float softcap, str mode, str backend)"
    " -> Tensor",
    _map,
    _fake_map,
)


def attention(plain: bool, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The op `fastfuse::attention_fwd`, with autograd. plain: what `is_plain` says."""
    if plain:
        *options, backend = rest
        kernels = _kernels("attention_fwd", q, v.shape[3], backend)
        if hasattr(kernels, "attention"):
            return kernels.attention(q, k, v, *options)
    inputs = (q, k, v, *rest)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        return apply(Attention, *inputs)
    return _forward(*inputs) if plain else torch.ops.fastfuse.attention_fwd.default(*inputs)


class Attention(torch.autograd.Function):
    """(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed, backend) -> (out, lse_pair)."""

    @staticmethod
    def forward(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _forward(q, *rest) if is_plain(q) else torch.ops.fastfuse.attention_fwd.default(q, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed, ctx.backend = inputs
        ctx.scale, ctx.softcap, ctx.dropout_p = scale, softcap, dropout_p
        ctx.save_for_backward(q, k, v, lo, hi, bias, sink, gate, seed, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse_pair: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, lo, hi, bias, sink, gate, seed, out, lse_pair = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5, 6, 7)]
        if dout is None and dlse_pair is None:
            return (None,) * 13
        scale, softcap, dropout_p = ctx.scale, ctx.softcap, ctx.dropout_p
        dlse = None if dlse_pair is None else dlse_pair[0]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: differentiated once more
            inputs = (q, k, v, bias, sink, gate)
            grads = reference.attention_grads(dout, dlse, inputs, needs, lo, hi, scale, softcap, dropout_p, seed)
        else:
            dout = torch.zeros_like(out) if dout is None else dout
            dout = dout if dout.stride(3) == 1 else dout.contiguous()  # a sum's gradient has stride 0
            saved = (q, k, v, lo, hi, bias, sink, gate, out, lse_pair)
            options = (scale, softcap, dropout_p, seed, needs, ctx.backend)
            op = _backward if is_plain(q) else torch.ops.fastfuse.attention_bwd
            grads = op(dout, dlse, *saved, *options)
        dq, dk, dv, dbias, dsink, dgate = (g if need else None for g, need in zip(grads, needs, strict=True))
        return dq, dk, dv, None, None, dbias, dsink, dgate, None, None, None, None, None
