"""The attention ops: forward, backward and map, and their autograd.

Forward saves its inputs, out and lse_pair, the same on every backend, so that one backend's forward pairs with
another's backward. lse_pair (2, B, H, Sq) is the log-sum-exp in float32, natural log, and what that rounding left out:
exp(s - lse) with one float32 would be off by 2^-24 |lse|, far more than eager PyTorch is. For calls that nobody watches
a backend may have an autograd of its own, and keep more in it. Double backward goes through the dense formula.
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


def attention(tensors: tuple[Any, ...], options: tuple[Any, ...], backend: str, plain: bool) -> tuple[Tensor, Tensor]:
    """The op `fastfuse::attention_fwd` with autograd; plain: what `is_plain` says of the call."""
    if plain:
        q, v = tensors[0], tensors[2]
        kernels = _kernels("attention_fwd", q, v.shape[3], backend)
        if hasattr(kernels, "attention"):
            return kernels.attention(*tensors, *options)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return apply(Attention, *tensors, *options, backend)
    return _attention_fwd(*tensors, *options, backend)


def _attention_fwd(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _forward(q, *rest) if is_plain(q) else torch.ops.fastfuse.attention_fwd.default(q, *rest)


class Attention(torch.autograd.Function):
    """(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed, backend) -> (out, lse_pair)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _attention_fwd(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, scale, softcap, dropout_p, seed, ctx.backend = inputs
        ctx.numbers = scale, softcap, dropout_p
        ctx.save_for_backward(*tensors, seed, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse_pair: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None and dlse_pair is None:
            return (None,) * 13
        *inputs, seed, out, lse_pair = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5, 6, 7)]
        grads = gradients(dout, dlse_pair, *inputs, out, lse_pair, *ctx.numbers, seed, needs, ctx.backend)
        dq, dk, dv, dbias, dsink, dgate = grads
        return dq, dk, dv, None, None, dbias, dsink, dgate, None, None, None, None, None


def gradients(dout: Tensor | None, dlse_pair: Tensor | None, *saved: Any) -> tuple[Tensor | None, ...]:
    """dq, dk, dv, dbias, dsink, dgate of one at least of dout and dlse_pair; None where it is not needed.

    saved: what `fastfuse::attention_bwd` takes after dout and dlse.
    """
    q, k, v, lo, hi, bias, sink, gate, out, _, scale, softcap, dropout_p, seed, needs, _ = saved
    dlse = None if dlse_pair is None else dlse_pair[0]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: differentiated once more
        inputs = (q, k, v, bias, sink, gate)
        return reference.attention_grads(dout, dlse, inputs, needs, lo, hi, scale, softcap, dropout_p, seed)
    dout = torch.zeros_like(out) if dout is None else dout
    dout = dout if dout.stride(3) == 1 else dout.contiguous()  # a sum's gradient has stride 0
    op = _backward if is_plain(q) else torch.ops.fastfuse.attention_bwd
    return tuple(g if need else None for g, need in zip(op(dout, dlse, *saved), needs, strict=True))
