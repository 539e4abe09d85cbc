"""Attention backward, without atomics: every sum has one owner and a fixed order.

    dq = scale dx k         a program has a block of stacked queries and walks over its tiles of keys, as forward does;
                            it leaves what the others need of a query, and the sums of dgate
    dk = scale dx^T q,      a program has a tile of keys and walks over the queries, of all heads of the group, that
    dv = weight^T dout      see any of them; its tiles are (N, M), k q^T and v dout^T

dx, weight and D_i are those of attention_gradient.py. Either walk has two loops: tiles that need no mask, because every
query sees every key and more than these, and those at the edges of spans and of the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .attention_gradient import gradient_tile, query_terms
from .attention_problem import AttentionProblem
from .attention_sums import attention_dbias
from .attention_tile import LOG2_E, bias_rows, gather_rows, key_tiles, load_rows, product_in_steps, span_ends

_SCAN = 1024  # queries whose spans are looked at in one go


@triton.jit
def _dq_step(
    acc, received,  # (M, BLOCK_D), (M,)
    tile,  # of keys
    queries, douts, q_rows, dout_rows, inside,  # (M, BLOCK_D), (M, BLOCK_DV), or None both; (M,) each
    k, v, stride_kn, stride_vn,
    first_key, end_key, terms, i, plane,
    bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
    BLOCK_N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    STEP_D: tl.constexpr,
    GATED: tl.constexpr, FITS: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start = tile * BLOCK_N
    row = tl.cast(start, tl.int64)
    if STEP_D:
        key = start + tl.arange(0, BLOCK_N)
        k_rows, v_rows = k + tl.cast(key, tl.int64) * stride_kn, v + tl.cast(key, tl.int64) * stride_vn
        x = product_in_steps(q_rows, inside, k_rows, key < Sk, D, BLOCK_D, STEP_D, PRECISION)
        g = product_in_steps(dout_rows, inside, v_rows, key < Sk, Dv, BLOCK_DV, STEP_D, PRECISION)
        keys = load_rows(k + row * stride_kn, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, MASKED)
    else:
        keys = load_rows(k + row * stride_kn, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, MASKED)
        values = load_rows(v + row * stride_vn, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, MASKED)
        x = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        g = tl.dot(douts, tl.trans(values), input_precision=PRECISION)
    _, _, dx, delta, found = gradient_tile(
        x, g, start, first_key, end_key, terms, i, plane,
        bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share, FITS and MASKED, PLAIN, MASKED, 1,
    )  # fmt: skip
    acc = tl.dot(dx.to(keys.dtype), keys, acc, input_precision=PRECISION)
    if GATED:
        received += tl.sum(found, 1)
    return acc, received, delta


@kernel
def attention_dq_kernel(
    q, stride_qb, stride_qh, stride_qm: tl.constexpr,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn: tl.constexpr,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn: tl.constexpr,  # (B, Hk, Sk, Dv)
    dout, stride_dob, stride_doh, stride_dom: tl.constexpr,  # (B, H, Sq, Dv)
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), or None
    out,  # (B, H, Sq, Dv)
    lse,  # (2, B, H, Sq)
    dlse,  # (B, H, Sq), or None
    dq,  # (B, H, Sq, D), or None
    left,  # (3, B, H, Sq): lse2, its low part and D_i, see attention_gradient.query_terms
    received,  # (B, H, Sq): sum_j p r, or None
    scale, unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    FITS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP_D: tl.constexpr,
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

    dout_rows = dout + b64 * stride_dob + head64 * stride_doh + i64 * stride_dom
    douts = gather_rows(dout_rows, inside, Dv, BLOCK_DV)
    outs = gather_rows(out + tl.cast(row, tl.int64) * Dv, inside, Dv, BLOCK_DV)
    lse2, lse2_low, _, open_, dlse_i, p_sink = query_terms(lse, None, dlse, sink, gate, row, all_rows, head, inside)
    delta = tl.sum(douts.to(tl.float32) * outs.to(tl.float32), 1) - dlse_i
    terms = (lse2, lse2_low, delta, open_, dlse_i, p_sink)

    if dq is not None or received is not None:
        q_rows = q + b64 * stride_qb + head64 * stride_qh + i64 * stride_qm
        queries = None if STEP_D else gather_rows(q_rows, inside, D, BLOCK_D)
        k += b64 * stride_kb + kv_head64 * stride_kh
        v += b64 * stride_vb + kv_head64 * stride_vh
        if bias is not None:
            bias = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, head, i)
        late = unit if PLAIN else LOG2_E
        first, full_first, full_end, end = key_tiles(first_key, end_key, BLOCK_N)
        full_end = tl.where(tl.min(end_key - first_key, 0) > BLOCK_N, full_end, full_first)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        sum_i = tl.zeros_like(delta)
        for tile in range(full_first, full_end):
            acc, sum_i, _ = _dq_step(
                acc, sum_i, tile, queries, douts, q_rows, dout_rows, inside, k, v, stride_kn, stride_vn,
                first_key, end_key, terms, i, plane,
                bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
                BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D, received is not None, FITS, PLAIN, False, PRECISION,
            )  # fmt: skip
        before = full_first - first
        for edge in tl.range(before + end - full_end, num_stages=1):
            tile = edge + tl.where(edge < before, first, full_end - before)
            terms = (lse2, lse2_low, delta, open_, dlse_i, p_sink)
            acc, sum_i, delta = _dq_step(
                acc, sum_i, tile, queries, douts, q_rows, dout_rows, inside, k, v, stride_kn, stride_vn,
                first_key, end_key, terms, i, plane,
                bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
                BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D, received is not None, FITS, PLAIN, True, PRECISION,
            )  # fmt: skip
        if dq is not None:
            feature = tl.arange(0, BLOCK_D)[None, :]
            pointers = dq + tl.cast(row, tl.int64)[:, None] * D + feature
            tl.store(pointers, (acc * scale).to(dq.dtype.element_ty), mask=inside[:, None] & (feature < D))
        if received is not None:
            tl.store(received + row, sum_i, mask=inside)
    left += row
    tl.store(left, lse2, mask=inside)
    tl.store(left + all_rows, lse2_low, mask=inside)
    tl.store(left + 2 * tl.cast(all_rows, tl.int64), delta, mask=inside)


@triton.jit
def _query_blocks(
    lo, hi, stride_sb, stride_sm, b, Sq, Sk, start,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE_M: tl.constexpr,  # queries of a block at the edges, of which BLOCK_M is a multiple
    SCAN: tl.constexpr,
):  # fmt: skip
    """(first, full_first, full_end, end) of the queries that a tile of keys works on, as `key_tiles`.

    The full ones see the tile and keys beyond it; they are a run of whole blocks, or none are taken for full.
    """
    end = start + BLOCK_N
    first_i, end_i = 0, Sq
    full_first_i, full_end_i = 0, tl.where((end <= Sk) & (Sk > BLOCK_N), Sq, 0)
    if lo is not None:
        first_i, end_i = tl.full([], Sq, tl.int32), tl.full([], 0, tl.int32)
        full_first_i, full_end_i, full_count = first_i, end_i, end_i
        for scanned in range(0, Sq, SCAN):
            i = scanned + tl.arange(0, SCAN)
            first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, tl.minimum(i, Sq - 1), Sk)
            sees = (i < Sq) & (tl.maximum(first_key, start) < tl.minimum(end_key, end))
            full = sees & (first_key <= start) & (end_key >= end) & (end_key - first_key > BLOCK_N)
            first_i = tl.minimum(first_i, tl.min(tl.where(sees, i, Sq), 0))
            end_i = tl.maximum(end_i, tl.max(tl.where(sees, i + 1, 0), 0))
            full_first_i = tl.minimum(full_first_i, tl.min(tl.where(full, i, Sq), 0))
            full_end_i = tl.maximum(full_end_i, tl.max(tl.where(full, i + 1, 0), 0))
            full_count += tl.sum(full.to(tl.int32), 0)
        full_end_i = tl.where(full_count == full_end_i - full_first_i, full_end_i, 0)
    full_first_i = tl.cdiv(full_first_i, BLOCK_M) * BLOCK_M
    full_end_i = full_end_i // BLOCK_M * BLOCK_M
    first_i = first_i // EDGE_M * EDGE_M
    if full_first_i >= full_end_i:
        full_first_i, full_end_i = first_i, first_i
    return first_i, full_first_i, full_end_i, end_i


@triton.jit
def _dkdv_step(
    dk_tile, dv_tile,  # (N, BLOCK_D), (N, BLOCK_DV)
    begin, head,  # first query of the block, and its head
    q, dout, stride_qh, stride_doh, stride_qm, stride_dom,  # of the batch
    keys, values,  # (N, BLOCK_D), (N, BLOCK_DV), or None both where products are made in steps
    k, v, stride_kn, stride_vn,  # first row of the tile
    lo, hi, stride_sb, stride_sm, terms, dlse, sink, gate, all_rows, b, H, Sq,
    start,  # first key of the tile
    bias, stride_bb, stride_bh, stride_bm, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    STEP_D: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
    FITS: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head64, row = tl.cast(head, tl.int64), tl.cast(begin, tl.int64)
    q += head64 * stride_qh + row * stride_qm
    dout += head64 * stride_doh + row * stride_dom
    if not STEP_D:
        queries = load_rows(q, stride_qm, Sq - begin, BLOCK_M, D, BLOCK_D, MASKED)
        douts = load_rows(dout, stride_dom, Sq - begin, BLOCK_M, Dv, BLOCK_DV, MASKED)
    i = begin + tl.arange(0, BLOCK_M)  # consecutive, so that a thread's vectors of terms have one pointer
    plane = b * H + head
    inside, first_key, end_key = None, i, i
    if MASKED:
        inside = i < Sq
    at = tl.cast(plane, tl.int64) * Sq + i
    given, sinks = (dlse, sink) if FITS else (None, None)
    query = query_terms(None, terms, given, sinks, gate, at, all_rows, head, inside)
    if MASKED:
        i = tl.minimum(i, Sq - 1)
        first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, i, Sk)
    if bias is not None:
        bias = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, tl.zeros_like(i) + head, i)
    if STEP_D:
        query_row, key_row = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        query_inside, key_inside = begin + query_row < Sq, start + key_row < Sk
        k_rows, q_rows = k + key_row * stride_kn, q + query_row * stride_qm
        x = product_in_steps(k_rows, key_inside, q_rows, query_inside, D, BLOCK_D, STEP_D, PRECISION)
        v_rows, dout_rows = v + key_row * stride_vn, dout + query_row * stride_dom
        g = product_in_steps(v_rows, key_inside, dout_rows, query_inside, Dv, BLOCK_DV, STEP_D, PRECISION)
        queries = load_rows(q, stride_qm, Sq - begin, BLOCK_M, D, BLOCK_D, MASKED)
        douts = load_rows(dout, stride_dom, Sq - begin, BLOCK_M, Dv, BLOCK_DV, MASKED)
    else:
        x = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        g = tl.dot(values, tl.trans(douts), input_precision=PRECISION)
    weight, _, dx, _, _ = gradient_tile(
        x, g, start, first_key, end_key, query, i, tl.zeros_like(i) + plane,
        bias, stride_bn, Sk, unit, softcap, late, seed, drop_below, share, FITS, PLAIN, MASKED, 0,
    )  # fmt: skip
    if NEED_V:
        dv_tile = tl.dot(weight.to(douts.dtype), douts, dv_tile, input_precision=PRECISION)
    if NEED_K:
        dk_tile = tl.dot(dx.to(queries.dtype), queries, dk_tile, input_precision=PRECISION)
    return dk_tile, dv_tile


@kernel
def attention_dkdv_kernel(
    q, stride_qb, stride_qh, stride_qm: tl.constexpr,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn: tl.constexpr,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn: tl.constexpr,  # (B, Hk, Sk, Dv)
    dout, stride_dob, stride_doh, stride_dom: tl.constexpr,  # (B, H, Sq, Dv)
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), or None
    terms,  # (3, B, H, Sq), as attention_dq_kernel leaves them
    dlse,  # (B, H, Sq), or None
    dk,  # (B, Hk, Sk, D), or None
    dv,  # (B, Hk, Sk, Dv), or None
    scale, unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    FITS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP_D: tl.constexpr,
    EDGE_M: tl.constexpr,  # queries of a block at the edges, of which BLOCK_M is a multiple
    SCAN: tl.constexpr,
):  # fmt: skip
    group = H // Hk
    tiles = tl.cdiv(Sk, BLOCK_N)
    pid = tl.program_id(0)
    start = pid % tiles * BLOCK_N
    b = pid // tiles // Hk
    kv_head = pid // tiles % Hk
    b64, kv_head64, start64 = tl.cast(b, tl.int64), tl.cast(kv_head, tl.int64), tl.cast(start, tl.int64)

    k += b64 * stride_kb + kv_head64 * stride_kh + start64 * stride_kn
    v += b64 * stride_vb + kv_head64 * stride_vh + start64 * stride_vn
    keys = None if STEP_D else load_rows(k, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, True)
    values = None if STEP_D else load_rows(v, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, True)
    late = unit if PLAIN else LOG2_E
    first, full_first, full_end, end = _query_blocks(
        lo, hi, stride_sb, stride_sm, b, Sq, Sk, start, BLOCK_M, BLOCK_N, EDGE_M, SCAN
    )  # fmt: skip
    q += b64 * stride_qb
    dout += b64 * stride_dob
    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    # One loop over heads and blocks: no pipeline to fill for each head, nor pointers of a head to keep.
    blocks = (full_end - full_first) // BLOCK_M
    for step in range(group * blocks):
        head = kv_head * group + step // tl.maximum(blocks, 1)
        begin = full_first + step % tl.maximum(blocks, 1) * BLOCK_M
        dk_tile, dv_tile = _dkdv_step(
            dk_tile, dv_tile, begin, head, q, dout, stride_qh, stride_doh, stride_qm, stride_dom,
            keys, values, k, v, stride_kn, stride_vn,
            lo, hi, stride_sb, stride_sm, terms, dlse, sink, gate, all_rows, b, H, Sq, start,
            bias, stride_bb, stride_bh, stride_bm, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
            BLOCK_M, BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D,
            dk is not None, dv is not None, False, PLAIN, False, PRECISION,
        )  # fmt: skip
    before = (full_first - first) // EDGE_M
    edges = before + tl.cdiv(end - full_end, EDGE_M)
    for step in tl.range(group * edges, num_stages=1):
        head = kv_head * group + step // tl.maximum(edges, 1)
        edge = step % tl.maximum(edges, 1)
        begin = edge * EDGE_M + tl.where(edge < before, first, full_end - before * EDGE_M)
        dk_tile, dv_tile = _dkdv_step(
            dk_tile, dv_tile, begin, head, q, dout, stride_qh, stride_doh, stride_qm, stride_dom,
            keys, values, k, v, stride_kn, stride_vn,
            lo, hi, stride_sb, stride_sm, terms, dlse, sink, gate, all_rows, b, H, Sq, start,
            bias, stride_bb, stride_bh, stride_bm, stride_bn, Sk, unit, softcap, late, seed, drop_below, share,
            EDGE_M, BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D,
            dk is not None, dv is not None, FITS, PLAIN, True, PRECISION,
        )  # fmt: skip

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
    assert v is not None
    need_q, need_k, need_v, need_bias, need_sink, need_gate = needs
    dlse = None if dlse is None else dlse.contiguous()
    dq, dk, dv = (t.new_empty(t.shape) if need else None for t, need in ((q, need_q), (k, need_k), (v, need_v)))
    dbias, dsink, dgate = None, None, None
    terms = q.new_empty(3, *lse.shape[1:], dtype=torch.float32)
    received = torch.empty_like(lse[0]) if need_gate else None
    _launch_dq(problem, dout, dlse, out.contiguous(), lse, dq, terms, received, tiles[0])
    if need_sink and sink is not None:
        p_sink = torch.exp((sink[:, None] - lse[0] - lse[1]).nan_to_num(nan=-torch.inf))
        dsink = -(p_sink * terms[2]).sum((0, 2))
    if received is not None and gate is not None:
        dgate = (1.0 - torch.tanh(gate) ** 2) * received.sum((0, 2))
    if need_k or need_v:
        _launch_dkdv(problem, dout, dlse, terms, dk, dv, tiles[1])
    if need_bias and bias is not None and bias.dtype != torch.bool:
        dbias = attention_dbias(problem, dout, dlse, terms, tiles[2], processors)
    return tuple(q.new_empty(0) if grad is None else grad for grad in (dq, dk, dv, dbias, dsink, dgate))


def _launch_dq(problem, dout, dlse, out, lse, dq, terms, received, tile) -> None:
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
        left=terms,
        received=received,
        scale=problem.scale,
        all_rows=lse[0].numel(),
        FITS=problem.fits(tile.block_n),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STEP_D=tile.block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **problem.values(),
    )  # fmt: skip


def _launch_dkdv(problem, dout, dlse, terms, dk, dv, tile) -> None:
    q, k, v = problem.q, problem.k, problem.v
    grid = (problem.B * problem.Hk * triton.cdiv(problem.Sk, tile.block_n),)
    attention_dkdv_kernel[grid](
        q, *q.stride()[:3],
        k, *k.stride()[:3],
        v, *v.stride()[:3],
        dout, *dout.stride()[:3],
        terms=terms,
        dlse=dlse,
        dk=dk,
        dv=dv,
        scale=problem.scale,
        all_rows=terms[0].numel(),
        FITS=problem.fits(tile.block_n),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STEP_D=tile.block_d,
        EDGE_M=max(tile.block_m // 2, 16),  # masks and sums fill registers that more queries would take
        SCAN=_SCAN,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **problem.values(),
    )  # fmt: skip
