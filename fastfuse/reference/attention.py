"""Attention as a dense formula.

s = softcap(scale q k^T) + bias, -inf outside the span
p = softmax(s) with the sink as one more column
out = tanh(gate) (p * keep / (1 - dropout_p)) v
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from fastfuse.reference.dropout import dropout_mask

P = ParamSpec("P")
R = TypeVar("R")


def _without_autocast(f: Callable[P, R]) -> Callable[P, R]:
    """Autocast has already chosen the dtype of what comes in; it must not lower the precision inside."""

    @wraps(f)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(t.device.type for t in args if isinstance(t, Tensor))
        with torch.autocast(device, enabled=False):
            return f(*args, **kwargs)

    return wrapped


@_without_autocast
def attention(
    q: Tensor,  # (B, H, Sq, D)
    k: Tensor,  # (B, Hk, Sk, D)
    v: Tensor,  # (B, Hk, Sk, Dv)
    lo: Tensor | None = None,  # int32 (B or 1, Sq or 1)
    hi: Tensor | None = None,  # int32 (B or 1, Sq or 1)
    bias: Tensor | None = None,  # float or bool, broadcastable to (B, H, Sq, Sk)
    sink: Tensor | None = None,  # (H,)
    gate: Tensor | None = None,  # (H,)
    scale: float = 1.0,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,  # int64, 0-dim
) -> tuple[Tensor, Tensor]:
    """out (B, H, Sq, Dv) in q's dtype, and lse_pair (2, B, H, Sq), float32 (float64 for float64 inputs).

    lse_pair[0] is the log-sum-exp, natural log, and lse_pair[1] what rounding left out of it. Low precision is computed
    in float32. Differentiable in every float argument, any number of times, through out and lse_pair[0].
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    scores = _scores(q.to(compute), k.to(compute), lo, hi, bias, scale, softcap)
    weights, lse_pair = _softmax(scores, sink)
    weights = weights[..., : k.shape[2]]
    if dropout_p:
        assert seed is not None
        weights = weights * (dropout_mask(seed, scores.shape, dropout_p) / (1.0 - dropout_p)).to(compute)
    out = weights @ _per_query_head(v.to(compute), q)
    if gate is not None:
        out = out * torch.tanh(gate.to(compute))[:, None, None]
    return out.to(q.dtype), lse_pair


@_without_autocast
def attention_bwd(
    dout: Tensor,  # (B, H, Sq, Dv)
    dlse: Tensor | None,  # (B, H, Sq)
    q: Tensor,  # (B, H, Sq, D)
    k: Tensor,  # (B, Hk, Sk, D)
    v: Tensor,  # (B, Hk, Sk, Dv)
    lo: Tensor | None,  # int32 (B or 1, Sq or 1)
    hi: Tensor | None,  # int32 (B or 1, Sq or 1)
    bias: Tensor | None,  # float or bool, 4-D, broadcastable to (B, H, Sq, Sk)
    sink: Tensor | None,  # (H,)
    gate: Tensor | None,  # (H,)
    out: Tensor,  # (B, H, Sq, Dv)
    lse_pair: Tensor,  # (2, B, H, Sq)
    scale: float,
    softcap: float,
    dropout_p: float,
    seed: Tensor | None,  # int64, 0-dim
    needs: Sequence[bool],  # which of the gradients are wanted
) -> tuple[Tensor, ...]:
    """dq, dk, dv, dbias, dsink, dgate by the algebra of the kernels, contiguous; (0,) for those that nobody needs.

    out and lse_pair, which kernels start from, are not used: with the whole row at hand the softmax is made afresh.

    g = dout v^T;  p = softmax(s) with the sink;  pd = p keep / (1 - dropout_p)
    dp = tanh(gate) g keep / (1 - dropout_p);  D_i = sum_j p_ij dp_ij - dlse_i
    ds = p (dp - D);  dbias = ds;  dsink = -sum_i p_i,sink D_i
    dv = tanh(gate) pd^T dout;  dgate = (1 - tanh(gate)^2) sum_ij pd_ij g_ij
    ds *= 1 - tanh(score / softcap)^2;  dq = scale ds k;  dk = scale ds^T q
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    Hk, Sk = k.shape[1:3]
    q_, dout_ = q.to(compute), dout.to(compute)
    k_, v_ = _per_query_head(k.to(compute), q), _per_query_head(v.to(compute), q)
    scores = _scores(q_, k_, lo, hi, bias, scale, softcap)
    columns, (lse, _) = _softmax(scores, sink)
    p = columns[..., :Sk]
    keep: Tensor | float = 1.0
    if dropout_p:
        assert seed is not None
        keep = (dropout_mask(seed, scores.shape, dropout_p) / (1.0 - dropout_p)).to(compute)
    factor = 1.0 if gate is None else torch.tanh(gate.to(compute))[:, None, None]
    received = dout_ @ v_.transpose(-1, -2) * keep
    dp = received * factor
    delta = (p * dp).sum(-1)
    if dlse is not None:
        delta = delta - dlse.to(compute).masked_fill(torch.isneginf(lse), 0.0)
    ds = p * (dp - delta[..., None])
    grads = {"dv": _sum_groups((p * keep).transpose(-1, -2) @ (dout_ * factor), Hk).to(v.dtype)}
    if bias is not None and bias.dtype != torch.bool:
        grads["dbias"] = ds.sum_to_size(bias.shape).to(bias.dtype)
    if sink is not None:
        grads["dsink"] = -(columns[..., Sk] * delta).sum((0, 2)).to(sink.dtype)
    if gate is not None:
        grads["dgate"] = ((1.0 - torch.tanh(gate) ** 2) * (p * received).sum((0, 2, 3))).to(gate.dtype)
    if softcap:
        ds = ds * (1.0 - torch.tanh(q_ @ k_.transpose(-1, -2) * (scale / softcap)) ** 2)
    grads["dq"] = (ds @ k_ * scale).to(q.dtype)
    grads["dk"] = _sum_groups(ds.transpose(-1, -2) @ q_ * scale, Hk).to(k.dtype)
    names = ("dq", "dk", "dv", "dbias", "dsink", "dgate")
    return tuple(grads[name].contiguous() if need else q.new_empty(0) for name, need in zip(names, needs, strict=True))


@_without_autocast
def attention_map(
    q: Tensor,  # (B, H, Sq, D)
    k: Tensor,  # (B, Hk, Sk, D)
    lo: Tensor | None,  # int32 (B or 1, Sq or 1)
    hi: Tensor | None,  # int32 (B or 1, Sq or 1)
    bias: Tensor | None,  # float or bool, broadcastable to (B, H, Sq, Sk)
    lse_pair: Tensor,  # (2, B, H, Sq), natural log, and what rounding left out of it
    scale: float,
    softcap: float,
    mode: str,
) -> Tensor:
    """The probabilities exp(s - lse), before dropout and gate.

    "full" (B, H, Sq, Sk), "mean" (B, Sq, Sk), "keys" (B, Sk), in lse_pair's dtype.
    """
    scores = _scores(q.to(lse_pair.dtype), k.to(lse_pair.dtype), lo, hi, bias, scale, softcap)
    lse, low = lse_pair[..., None]
    empty = torch.isneginf(lse)
    weights = torch.exp(scores.masked_fill(empty, -math.inf) - lse.masked_fill(empty, 0.0) - low)
    if mode == "full":
        return weights
    mean = weights.mean(1)
    return mean if mode == "mean" else mean.sum(1)


def attention_grads(
    dout: Tensor | None,  # (B, H, Sq, Dv)
    dlse: Tensor | None,  # (B, H, Sq)
    inputs: Sequence[Tensor | None],  # q, k, v, bias, sink, gate
    needs: Sequence[bool],  # which of the inputs want a gradient
    lo: Tensor | None,  # int32 (B or 1, Sq or 1)
    hi: Tensor | None,  # int32 (B or 1, Sq or 1)
    scale: float,
    softcap: float,
    dropout_p: float,
    seed: Tensor | None,  # int64, 0-dim
) -> tuple[Tensor | None, ...]:
    """Gradients for q, k, v, bias, sink, gate that can be differentiated again: autograd through `attention`."""
    q, k, v, bias, sink, gate = inputs
    assert q is not None
    assert k is not None
    assert v is not None
    out, (lse, _) = attention(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed)
    given = [] if dout is None else [(out, dout)]
    if dlse is not None and lse.requires_grad:
        given.append((lse, dlse.masked_fill(torch.isneginf(lse), 0.0)))  # an empty row's lse is a constant
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    outputs, douts = zip(*given, strict=True)
    found = torch.autograd.grad(outputs, wanted, douts, create_graph=True, allow_unused=True, materialize_grads=True)
    grads = iter(found)
    return tuple(next(grads) if need else None for need in needs)


def _scores(
    q: Tensor,
    k: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    scores = (q @ _per_query_head(k, q).transpose(-1, -2)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias.to(scores.dtype)
    if lo is not None and hi is not None:
        key = torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
        visible = (key >= lo[..., None]) & (key < hi[..., None])
        scores = scores.masked_fill(~visible[:, None], -math.inf)
    return scores


def _per_query_head(t: Tensor, q: Tensor) -> Tensor:
    groups = q.shape[1] // t.shape[1] if t.shape[1] else 1
    return t if groups == 1 else t.repeat_interleave(groups, 1)


def _sum_groups(t: Tensor, Hk: int) -> Tensor:
    """(B, H, S, D) -> (B, Hk, S, D): what the query heads of a key head give it together."""
    return t.reshape(t.shape[0], Hk, -1, *t.shape[2:]).sum(2)


def _softmax(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """The probabilities (B, H, Sq, Sk), or (B, H, Sq, Sk + 1) with the sink's last, and lse_pair (2, B, H, Sq).

    Rows that see nothing give 0 and -inf: they get finite scores first, so that no gradient becomes NaN.
    """
    B, H, Sq, _ = scores.shape
    if sink is not None:
        scores = torch.cat((scores, sink.to(scores.dtype).view(1, H, 1, 1).expand(B, H, Sq, 1)), -1)
    if scores.shape[-1] == 0:  # torch has no maximum of no columns
        empty_row = scores.sum(-1)
        return scores, torch.stack((empty_row - math.inf, empty_row))
    empty = torch.isneginf(scores).all(-1)
    safe = scores.masked_fill(empty[..., None], 0.0)
    lse = torch.logsumexp(safe, -1)
    with torch.no_grad():
        highest = safe.amax(-1)
        low = (highest - lse) + (safe - highest[..., None]).exp().sum(-1).log()
    lse_pair = torch.stack((lse.masked_fill(empty, -math.inf), low.masked_fill(empty, 0.0)))
    return torch.softmax(safe, -1).masked_fill(empty[..., None], 0.0), lse_pair
