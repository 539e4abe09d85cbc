"""Attention backward, without atomics: every sum has one owner and a fixed order.

    dq = scale dx k         a program has a block of stacked queries and walks over its tiles of keys, as forward does;
                            it leaves D_i and the sums of dgate too
    dk = scale dx^T q,      a program has a tile of keys and walks over the queries, of all heads of the group, that
    dv = weight^T dout      see any of them

dx, weight and D_i are those of attention_gradient.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_gradient import gradient_tile, query_terms
from .attention_problem import AttentionProblem
from .attention_sums import attention_dbias
from .attention_tile import LOG2_E, bias_rows, gather_rows, key_tiles, load_rows, span_ends

_SCAN = 1024  # queries whose spans are looked at in one go


@triton.jit
def _dq_step(
    acc, delta, received,  # (M, BLOCK_D), (M,), (M,)
    tile,  # of keys
    queries, douts, k, v, stride_kn, stride_vn,
    first_key, end_key, terms, i, plane,
    bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
    BLOCK_N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    GATED: tl.constexpr, FITS: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start = tile * BLOCK_N
    row = tl.cast(start, tl.int64)
    keys = load_rows(k + row * stride_kn, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, MASKED)
    values = load_rows(v + row * stride_vn, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, MASKED)
    x = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    g = tl.dot(douts, tl.trans(values), input_precision=PRECISION)
    lse2, lse2_low, open_, _, dlse, p_sink = terms
    terms = (lse2, lse2_low, open_, delta, dlse, p_sink)
    _, _, dx, delta, found = gradient_tile(
        x, g, start, first_key, end_key, terms, i, plane,
        bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share, FITS, PLAIN, MASKED,
    )  # fmt: skip
    acc = tl.dot(dx.to(keys.dtype), keys, acc, input_precision=PRECISION)
    if GATED:
        received += tl.sum(found, 1)
    return acc, delta, received


@triton.jit
def attention_dq_kernel(
    q, stride_qb, stride_qh, stride_qm,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn,  # (B, Hk, Sk, Dv)
    dout, stride_dob, stride_doh, stride_dom,  # (B, H, Sq, Dv)
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), or None
    out,  # (B, H, Sq, Dv)
    lse,  # (2, B, H, Sq)
    dlse,  # (B, H, Sq), or None
    dq,  # (B, H, Sq, D), or None
    delta,  # (B, H, Sq): D_i
    received,  # (B, H, Sq): sum_j p r, or None
    scale, unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    FITS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group = H // Hk
    blocks = tl.cdiv(group * Sq, BLOCK_M)
    pid = tl.program_id(0)
    block = blocks - 1 - pid % blocks  # causal spans: the longest rows first
    b = pid // blocks // Hk
    kv_head = pid // blocks % Hk
    b64, kv_head64 = tl.cast(b, tl.int64), tl.cast(kv_head, tl.int64)

    stacked = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = stacked < group * Sq
    stacked = tl.minimum(stacked, group * Sq - 1)
    head, i = kv_head * group + stacked // Sq, stacked % Sq
    head64, i64 = tl.cast(head, tl.int64), tl.cast(i, tl.int64)
    row = (b * H + kv_head * group) * Sq + stacked
    first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, i, Sk)
    plane = b * H + head

    douts = gather_rows(dout + b64 * stride_dob + head64 * stride_doh + i64 * stride_dom, inside, Dv, BLOCK_DV)
    outs = gather_rows(out + tl.cast(row, tl.int64) * Dv, inside, Dv, BLOCK_DV)
    terms = query_terms(lse, None, dlse, sink, gate, row, all_rows, head, inside)
    delta_i = tl.sum(douts.to(tl.float32) * outs.to(tl.float32), 1) - terms[4]
    received_i = tl.zeros_like(delta_i)

    if dq is not None or received is not None:
        q_rows = q + b64 * stride_qb + head64 * stride_qh + i64 * stride_qm
        queries = gather_rows(q_rows, inside, D, BLOCK_D)
        k += b64 * stride_kb + kv_head64 * stride_kh
        v += b64 * stride_vb + kv_head64 * stride_vh
        if bias is not None:
            bias = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, head, i)
        late = unit if PLAIN else LOG2_E
        first, full_first, full_end, end = key_tiles(first_key, end_key, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for tile in range(full_first, full_end):
            acc, delta_i, received_i = _dq_step(
                acc, delta_i, received_i, tile, queries, douts, k, v, stride_kn, stride_vn,
                first_key, end_key, terms, i, plane,
                bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
                BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, received is not None, FITS, PLAIN, False, PRECISION,
            )  # fmt: skip
        before = full_first - first
        for edge in range(before + end - full_end):
            tile = edge + tl.where(edge < before, first, full_end - before)
            acc, delta_i, received_i = _dq_step(
                acc, delta_i, received_i, tile, queries, douts, k, v, stride_kn, stride_vn,
                first_key, end_key, terms, i, plane,
                bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
                BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, received is not None, FITS, PLAIN, True, PRECISION,
            )  # fmt: skip
        if dq is not None:
            feature = tl.arange(0, BLOCK_D)[None, :]
            pointers = dq + tl.cast(row, tl.int64)[:, None] * D + feature
            tl.store(pointers, (acc * scale).to(dq.dtype.element_ty), mask=inside[:, None] & (feature < D))
        if received is not None:
            tl.store(received + row, received_i, mask=inside)
    tl.store(delta + row, delta_i, mask=inside)


@triton.jit
def _queries_that_see(
    lo, hi, stride_sb, stride_sm, b, Sq, Sk, start, end, BLOCK_M: tl.constexpr, SCAN: tl.constexpr
):  # fmt: skip
    """The queries, first and one after last, that see any key of start..end; whole blocks from the first on."""
    first, last = 0, Sq
    if lo is not None:
        first, last = tl.full([], Sq, tl.int32), tl.full([], 0, tl.int32)
        for scanned in range(0, Sq, SCAN):
            i = scanned + tl.arange(0, SCAN)
            first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, tl.minimum(i, Sq - 1), Sk)
            sees = (i < Sq) & (tl.maximum(first_key, start) < tl.minimum(end_key, end))
            first = tl.minimum(first, tl.min(tl.where(sees, i, Sq), 0))
            last = tl.maximum(last, tl.max(tl.where(sees, i + 1, 0), 0))
        first = first // BLOCK_M * BLOCK_M
    return first, last


@triton.jit
def attention_dkdv_kernel(
    q, stride_qb, stride_qh, stride_qm,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn,  # (B, Hk, Sk, Dv)
    dout, stride_dob, stride_doh, stride_dom,  # (B, H, Sq, Dv)
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), or None
    lse,  # (2, B, H, Sq)
    delta,  # (B, H, Sq), or None where only dv is wanted
    dlse,  # (B, H, Sq), or None
    dk,  # (B, Hk, Sk, D), or None
    dv,  # (B, Hk, Sk, Dv), or None
    scale, unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    FITS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = FITS or lo is not None or bias is not None
    group = H // Hk
    tiles = tl.cdiv(Sk, BLOCK_N)
    pid = tl.program_id(0)
    start = pid % tiles * BLOCK_N
    b = pid // tiles // Hk
    kv_head = pid // tiles % Hk
    b64, kv_head64, start64 = tl.cast(b, tl.int64), tl.cast(kv_head, tl.int64), tl.cast(start, tl.int64)

    k += b64 * stride_kb + kv_head64 * stride_kh + start64 * stride_kn
    v += b64 * stride_vb + kv_head64 * stride_vh + start64 * stride_vn
    keys = load_rows(k, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, True)
    values = load_rows(v, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, True)
    late = unit if PLAIN else LOG2_E
    first, last = _queries_that_see(lo, hi, stride_sb, stride_sm, b, Sq, Sk, start, start + BLOCK_N, BLOCK_M, SCAN)

    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for g in range(group):
        head = kv_head * group + g
        head64 = tl.cast(head, tl.int64)
        q_head = q + b64 * stride_qb + head64 * stride_qh
        dout_head = dout + b64 * stride_dob + head64 * stride_doh
        for begin in range(first, last, BLOCK_M):
            i = begin + tl.arange(0, BLOCK_M)
            inside = i < Sq
            i = tl.minimum(i, Sq - 1)
            heads = tl.zeros_like(i) + head
            begin64 = tl.cast(begin, tl.int64)
            queries = load_rows(q_head + begin64 * stride_qm, stride_qm, Sq - begin, BLOCK_M, D, BLOCK_D, True)
            douts = load_rows(dout_head + begin64 * stride_dom, stride_dom, Sq - begin, BLOCK_M, Dv, BLOCK_DV, True)
            first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, i, Sk)
            plane = b * H + heads
            terms = query_terms(lse, delta, dlse, sink, gate, plane * Sq + i, all_rows, heads, inside)
            bias_i = bias
            if bias is not None:
                bias_i = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, heads, i)
            x = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            g_tile = tl.dot(douts, tl.trans(values), input_precision=PRECISION)
            weight, _, dx, _, _ = gradient_tile(
                x, g_tile, start, first_key, end_key, terms, i, plane,
                bias_i, stride_bn, Sk, unit, softcap, late, seed, drop_below, share, FITS, PLAIN, MASKED,
            )  # fmt: skip
            if dv is not None:
                dv_tile = tl.dot(tl.trans(weight.to(douts.dtype)), douts, dv_tile, input_precision=PRECISION)
            if dk is not None:
                dk_tile = tl.dot(tl.trans(dx.to(queries.dtype)), queries, dk_tile, input_precision=PRECISION)

    key = start + tl.arange(0, BLOCK_N)
    row = (b64 * Hk + kv_head) * Sk + key
    if dk is not None:
        feature = tl.arange(0, BLOCK_D)[None, :]
        stored = (dk_tile * scale).to(dk.dtype.element_ty)
        tl.store(dk + row[:, None] * D + feature, stored, mask=(key < Sk)[:, None] & (feature < D))
    if dv is not None:
        feature = tl.arange(0, BLOCK_DV)[None, :]
        stored = dv_tile.to(dv.dtype.element_ty)
        tl.store(dv + row[:, None] * Dv + feature, stored, mask=(key < Sk)[:, None] & (feature < Dv))


def attention_bwd(
    problem: AttentionProblem,
    dout: Tensor,  # (B, H, Sq, Dv), last dim contiguous
    dlse: Tensor | None,  # (B, H, Sq)
    out: Tensor,  # (B, H, Sq, Dv)
    lse: Tensor,  # (2, B, H, Sq), contiguous
    needs: Sequence[bool],  # which of dq, dk, dv, dbias, dsink, dgate are wanted
    tiles: tuple,  # fastfuse.tuning.tiles.Tile of dq, of dk and dv, of dbias
    processors: int,  # multiprocessors to spread the sums of dbias over
) -> tuple[Tensor, ...]:
    """dq, dk, dv, dbias, dsink, dgate, contiguous; (0,) for those that nobody needs."""
    q, k, v, bias, sink, gate = problem.q, problem.k, problem.v, problem.bias, problem.sink, problem.gate
    need_q, need_k, need_v, need_bias, need_sink, need_gate = needs
    dlse = None if dlse is None else dlse.contiguous()
    dq, dk, dv = (t.new_empty(t.shape) if need else None for t, need in ((q, need_q), (k, need_k), (v, need_v)))
    delta, dbias, dsink, dgate = None, None, None, None
    if need_q or need_k or need_bias or need_sink or need_gate:
        delta = torch.empty_like(lse[0])
        received = torch.empty_like(lse[0]) if need_gate else None
        _launch_dq(problem, dout, dlse, out.contiguous(), lse, dq, delta, received, tiles[0])
        if need_sink and sink is not None:
            p_sink = torch.exp((sink[:, None] - lse[0] - lse[1]).nan_to_num(nan=-torch.inf))
            dsink = -(p_sink * delta).sum((0, 2))
        if received is not None and gate is not None:
            dgate = (1.0 - torch.tanh(gate) ** 2) * received.sum((0, 2))
    if need_k or need_v:
        _launch_dkdv(problem, dout, dlse, lse, delta, dk, dv, tiles[1])
    if need_bias and bias is not None and bias.dtype != torch.bool:
        assert delta is not None
        dbias = attention_dbias(problem, dout, dlse, lse, delta, tiles[2], processors)
    return tuple(q.new_empty(0) if grad is None else grad for grad in (dq, dk, dv, dbias, dsink, dgate))


def _launch_dq(problem, dout, dlse, out, lse, dq, delta, received, tile) -> None:
    q, k, v = problem.q, problem.k, problem.v
    grid = (problem.B * problem.Hk * triton.cdiv(problem.rows, tile.block_m),)
    attention_dq_kernel[grid](
        q, *q.stride()[:3],
        k, *k.stride()[:3],
        v, *v.stride()[:3],
        dout, *dout.stride()[:3],
        out=out,
        lse=lse,
        dlse=dlse,
        dq=dq,
        delta=delta,
        received=received,
        scale=problem.scale,
        all_rows=delta.numel(),
        FITS=problem.fits(tile.block_n),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **problem.values(),
    )  # fmt: skip


def _launch_dkdv(problem, dout, dlse, lse, delta, dk, dv, tile) -> None:
    q, k, v = problem.q, problem.k, problem.v
    grid = (problem.B * problem.Hk * triton.cdiv(problem.Sk, tile.block_n),)
    attention_dkdv_kernel[grid](
        q, *q.stride()[:3],
        k, *k.stride()[:3],
        v, *v.stride()[:3],
        dout, *dout.stride()[:3],
        lse=lse,
        delta=delta,
        dlse=dlse,
        dk=dk,
        dv=dv,
        scale=problem.scale,
        all_rows=lse[0].numel(),
        FITS=problem.fits(tile.block_n),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        SCAN=_SCAN,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **problem.values(),
    )  # fmt: skip
