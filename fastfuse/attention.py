"""Fused cross-modal attention: the public functions.

s = softcap(scale q k^T) + bias, inside the span;  p = softmax(s) with the sink;  out = tanh(gate) dropout(p) v
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from fastfuse import reference, validation
from fastfuse.backends import LARGEST_HEAD_MULTIPLE, check_name, head_multiple
from fastfuse.ops.attention import attention
from fastfuse.ops.transforms import is_plain, needs_formula
from fastfuse.span import KeySpan


class AttentionOutput(NamedTuple):
    """What `cross_attention` returns when more than the output was asked for."""

    out: Tensor  # (B, H, Sq, Dv), q's dtype
    lse: Tensor | None  # (B, H, Sq), natural log, float32
    map: Tensor | None  # "full" (B, H, Sq, Sk), "mean" (B, Sq, Sk) or "keys" (B, Sk), float32


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    span: KeySpan | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    return_map: str | None = None,
    backend: str = "auto",
) -> Tensor | AttentionOutput:
    """Attention of queries of one modality over keys and values of another, never causal unless the span says so.

    In this order: scale, softcap, bias, span, softmax with the sink, dropout, product with v, tanh(gate). No Sq x Sk
    matrix exists in forward or backward (but for a dense bias, its gradient, or the "full" and "mean" maps; on the CPU
    the weights are kept for the backward where they take at most 72 MiB, or no more bytes than k and v). A query that
    sees nothing gives out 0, lse -inf (or its sink), map 0 and zero, finite gradients. Gradients are deterministic.

    Args:
        q: (B, H, Sq, D), float32, bfloat16 or float16 (float64 on `reference`), any strides.
        k: (B, Hk, Sk, D), with H a multiple of Hk (grouped-query attention, arXiv:2305.13245).
        v: (B, Hk, Sk, Dv).
        span: the keys that each query may see, an interval a query; all of them by default.
        bias: broadcastable to (B, H, Sq, Sk). A float bias is added to the scores and differentiable; a bool bias hides
            where it is False.
        sink: (H,), a logit that takes probability and gives no value; differentiable.
        gate: () or (H,), ``out *= tanh(gate)``, differentiable (Flamingo, arXiv:2204.14198).
        scale: multiplies the products q k^T; D ** -0.5 by default.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 turns it off.
        dropout_p: probability of dropping an attention weight, 0 <= dropout_p < 1.
        seed: the weights that dropout drops are a pure function of it (`fastfuse.reference.dropout_mask`); drawn from
            torch's generator by default.
        return_lse: also return the log-sum-exp of the scores, natural log, with the sink; differentiable.
        return_map: also return the attention probabilities before dropout and gate, not differentiable: "full"
            (B, H, Sq, Sk); "mean" (B, Sq, Sk), over heads; "keys" (B, Sk), summed over queries, mean over heads.
        backend: "auto", or a name of `fastfuse.backends()`.

    Returns:
        (B, H, Sq, Dv) in q's dtype; an `AttentionOutput` when return_lse or return_map asks for more.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or values do not fit; the message names the argument, what came and what fits.
        NotImplementedError: the named backend can not serve the call; with every reason.
    """
    if _is_any_autocast_enabled():
        q, k, v = _autocast(q, k, v)
    B, H, Sq, Sk, D, Dv = validation.attention(
        q, k, v, span, bias, sink, gate, scale, softcap, dropout_p, seed, return_map
    )
    scale = D**-0.5 if scale is None else float(scale)
    suits_all = D % LARGEST_HEAD_MULTIPLE == Dv % LARGEST_HEAD_MULTIPLE == 0
    if not suits_all or not q.stride()[3] == k.stride()[3] == v.stride()[3] == 1:
        multiple = head_multiple(q.device.type, backend)
        q, k, v = (_kernel_layout(t, multiple) for t in (q, k, v))
    lo, hi = (None, None) if span is None else _ends(span)
    if bias is not None:
        bias = _four_dims(bias, q.dtype)
    if sink is not None:
        sink = sink.to(torch.promote_types(q.dtype, torch.float32)).contiguous()
    if gate is not None:
        gate = gate.to(torch.promote_types(q.dtype, torch.float32)).expand(H).contiguous()
    seed_tensor = _seed(seed, q.device) if dropout_p else None

    tensors = (q, k, v, lo, hi, bias, sink, gate)
    options = (scale, float(softcap), float(dropout_p), seed_tensor)
    plain = is_plain(q)
    if 0 in (B, Sq, Sk) or (not plain and needs_formula()):
        check_name(backend)
        backend = "reference"
        out, lse_pair = reference.attention(*tensors, *options)
    else:
        out, lse_pair = attention(tensors, options, backend, plain)
    if out.shape[3] != Dv:
        out = out[..., :Dv]
    if not return_lse and return_map is None:
        return out
    weights = None
    if return_map is not None:
        with torch.no_grad():
            mask = (lo, hi, bias)
            weights = torch.ops.fastfuse.attention_map(q, k, *mask, lse_pair, scale, softcap, return_map, backend)
    return AttentionOutput(out, lse_pair[0] if return_lse else None, weights)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, same signature and meaning, on fastfuse's kernels.

    As there, is_causal is aligned to the top left (``j <= i``), and the leading dimensions may be any number that
    broadcast. Unlike there, a float mask has a gradient everywhere and a row that sees nothing gives 0.

    Args:
        query: (..., H, Sq, D).
        key: (..., Hk, Sk, D); Hk < H only with enable_gqa.
        value: (..., Hk, Sk, Dv).
        attn_mask: bool (True takes part) or float (added), broadcastable to (..., H, Sq, Sk).

    Raises:
        ValueError: shapes do not fit, or both attn_mask and is_causal are given.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("is_causal: expected False when attn_mask is given, got True")
    given = {"query": query, "key": key, "value": value}
    for name, t in given.items():
        if t.dim() < 2 + enable_gqa:
            shape = "(..., H, S, D)" if enable_gqa else "(..., S, D)"
            raise ValueError(f"{name}: expected {shape}, got shape {tuple(t.shape)}")
    try:
        if enable_gqa:  # the head counts differ: only what stands before them broadcasts
            batch = torch.broadcast_shapes(*(t.shape[:-3] for t in given.values()))
            lead = (*batch, query.shape[-3])
            q, k, v = (t.expand(*batch, *t.shape[-3:]).reshape(prod(batch), *t.shape[-3:]) for t in given.values())
        else:
            lead = torch.broadcast_shapes(*(t.shape[:-2] for t in given.values()))
            flat = (prod(lead[:-1]), lead[-1] if lead else 1)
            q, k, v = (t.expand(*lead, *t.shape[-2:]).reshape(*flat, *t.shape[-2:]) for t in given.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in given.items())
        raise ValueError(f"query, key, value: leading dimensions do not broadcast, got {shapes}") from None
    if attn_mask is not None and len(lead) > 2 and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:]).reshape(q.shape[0], lead[-1], *attn_mask.shape[-2:])
    span = None
    if is_causal:
        hi = torch.arange(1, q.shape[2] + 1, dtype=torch.int32, device=q.device)[None]
        span = KeySpan(torch.zeros_like(hi), hi)
    out = cross_attention(q, k, v, span=span, bias=attn_mask, scale=scale, dropout_p=dropout_p)
    assert isinstance(out, Tensor)
    return out.reshape(*lead, *out.shape[-2:])


def merge_attention(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint key sets, from the attention over each.

        lse = log sum_i exp(lse_i);  out = sum_i exp(lse_i - lse) out_i

    For ring attention, cached prefixes, and streams that are never concatenated. Differentiable. A sink belongs to one
    of the parts only.

    Args:
        parts: pairs of out (..., S, Dv) and lse (..., S), natural log, from `cross_attention(return_lse=True)`.

    Returns:
        out in the dtype of the first out, and lse in float32 (float64 for float64 parts). A query that sees nothing in
        every part gives out 0 and lse -inf.

    Raises:
        ValueError: there is no part, or shapes differ.
    """
    if not parts:
        raise ValueError("parts: expected at least one (out, lse) pair, got none")
    first = parts[0][0]
    for i, (out, lse) in enumerate(parts):
        if out.shape != first.shape or lse.shape != first.shape[:-1]:
            raise ValueError(
                f"parts[{i}]: expected out {tuple(first.shape)} and lse {tuple(first.shape[:-1])}, "
                f"got {tuple(out.shape)} and {tuple(lse.shape)}"
            )
    lses = torch.stack([lse for _, lse in parts])
    empty = torch.isneginf(lses).all(0)
    lses = lses.masked_fill(empty, 0.0)  # keeps the gradient of rows that see nothing finite
    shares = torch.softmax(lses, 0).masked_fill(empty, 0.0)
    merged = sum(share[..., None] * out for share, (out, _) in zip(shares, parts, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(first.dtype), torch.logsumexp(lses, 0).masked_fill(empty, -torch.inf)


def joint_attention(
    qs: Sequence[Tensor],
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    spans: Sequence[KeySpan | None] | Sequence[Sequence[KeySpan | None]] | None = None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Self-attention over several streams (text, image, audio): each query sees the keys of all of them.

    The same as attention over the concatenated streams (MM-DiT, arXiv:2403.03206), without a concatenation.

    Args:
        qs: a (B, H, S_i, D) for each stream i.
        ks: a (B, Hk, S_j, D) for each stream j.
        vs: a (B, Hk, S_j, Dv) for each stream j.
        spans: which keys of stream j are seen, in stream j's own positions: either one span for each key stream, for
            all queries (padding: `KeySpan.lengths`), or ``spans[i][j]`` for the queries of stream i. None sees all.
        scale, softcap, backend: as in `cross_attention`.

    Returns:
        An out (B, H, S_i, Dv) for each stream.

    Raises:
        ValueError: the numbers of streams differ, or a stream's shapes do not fit.
    """
    n = len(qs)
    if n == 0 or not n == len(ks) == len(vs):
        raise ValueError(f"qs, ks, vs: expected one tensor each for every stream, got {n}, {len(ks)} and {len(vs)}")
    rows = _span_rows(spans, n)
    outs = []
    for q, row in zip(qs, rows, strict=True):
        parts = []
        for k, v, span in zip(ks, vs, row, strict=True):
            part = cross_attention(q, k, v, span=span, scale=scale, softcap=softcap, return_lse=True, backend=backend)
            assert isinstance(part, AttentionOutput)
            assert part.lse is not None
            parts.append((part.out, part.lse))
        outs.append(merge_attention(parts)[0])
    return tuple(outs)


def _span_rows(
    spans: Sequence[KeySpan | None] | Sequence[Sequence[KeySpan | None]] | None, n: int
) -> list[Sequence[KeySpan | None]]:
    """spans[i][j] for the queries of stream i and the keys of stream j, from either form that users pass."""
    if spans is None:
        return [[None] * n] * n
    rows: list[Any] = [spans] * n if all(s is None or isinstance(s, KeySpan) for s in spans) else list(spans)
    lengths = [len(row) if isinstance(row, Sequence) else 1 for row in rows]
    if lengths != [n] * n:
        raise ValueError(f"spans: expected {n} spans, or {n} rows of {n}, got rows of lengths {lengths}")
    return rows


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    # float64 is asked for on purpose: autocast leaves it alone, as it does elsewhere.
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _kernel_layout(t: Tensor, multiple: int) -> Tensor:
    """The last dimension contiguous and padded with zeros to such a multiple."""
    if t.shape[3] % multiple:
        return F.pad(t, (0, -t.shape[3] % multiple))
    return t if t.stride(3) == 1 else t.contiguous()


def _ends(span: KeySpan) -> tuple[Tensor, Tensor]:
    """lo and hi of one shape (B or 1, Sq or 1), contiguous."""
    lo, hi = (span.lo, span.hi) if span.lo.shape == span.hi.shape else torch.broadcast_tensors(span.lo, span.hi)
    return lo.contiguous(), hi.contiguous()


def _four_dims(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """bias as (B or 1, H or 1, Sq or 1, Sk or 1), bool, or float in a dtype that the kernels take."""
    if bias.dtype not in (torch.bool, torch.float32, dtype):
        bias = bias.to(torch.float32)
    return bias if bias.dim() == 4 else bias.reshape((1,) * (4 - bias.dim()) + bias.shape)


def _seed(seed: int | None, device: torch.device) -> Tensor:
    """int64, 0-dim. Where none is given, torch's generator draws it on the device: no wait, and it compiles."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    return torch.tensor((seed + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=device)
