"""Attention forward.

    s = log2 scores of attention_tile.py;  p = 2^(s - lse2) with the sink as one more column
    out = tanh(gate) (p keep / (1 - dropout_p)) v;  lse = ln sum_j exp(s_j) + exp(sink)

A program has BLOCK_M rows: queries of one key head, those of all query heads of its group stacked, row = head Sq + i.
It walks over the tiles of keys that any of its queries sees; tiles that all of them see whole need no mask.

Where programs are few and keys many, SPLITS programs share the keys of one block of rows, and `attention_merge_kernel`
adds up what they found: for each its maximum m, sum l and unnormalised output, in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .attention_problem import AttentionProblem
from .attention_tile import (
    INF,
    LOG2_E,
    bias_rows,
    gather_rows,
    kept,
    key_tiles,
    load_rows,
    product_in_steps,
    scores,
    softmax_step,
    span_ends,
    store_lse,
    tanh,
)


@triton.jit
def _step(
    acc, m, l,  # (M, BLOCK_DV), (M,), (M,): unnormalised output, maximum and sum so far
    tile,  # of keys
    q, q_rows, inside, k, v, stride_kn, stride_vn,  # (M, BLOCK_D) or None, (M,), (M,); first rows of the head
    bias, stride_bn, first_key, end_key, Sk, unit, softcap, late,  # see attention_tile.scores
    seed, drop_below, plane, i,  # see attention_tile.kept
    BLOCK_N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    STEP_D: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start = tile * BLOCK_N
    row = tl.cast(start, tl.int64)
    if STEP_D:
        key = start + tl.arange(0, BLOCK_N)
        k_rows = k + tl.cast(key, tl.int64) * stride_kn
        x = product_in_steps(q_rows, inside, k_rows, key < Sk, D, BLOCK_D, STEP_D, PRECISION)
    else:
        keys = load_rows(k + row * stride_kn, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, MASKED)
        x = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    s, _ = scores(x, bias, stride_bn, start, first_key, end_key, Sk, unit, softcap, PLAIN, MASKED, 1)
    p, m, l, alpha = softmax_step(s, late, m, l)
    if seed is not None:
        p = tl.where(kept(seed, drop_below, plane, i, start, BLOCK_N, 1), p, 0.0)
    values = load_rows(v + row * stride_vn, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, MASKED)
    acc = tl.dot(p.to(values.dtype), values, acc * alpha[:, None], input_precision=PRECISION)
    return acc, m, l


@triton.jit
def _store(
    acc, m, l, out, lse, low,  # out (rows, Dv), lse (2, rows) whose second half is `low` away
    rows, inside, gate, head, share,
    Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Normalised output and log-sum-exp of the rows (M,)."""
    weight = share / tl.where(l == 0.0, 1.0, l)
    if gate is not None:
        weight *= tanh(tl.load(gate + head))
    feature = tl.arange(0, BLOCK_DV)[None, :]
    pointers = out + tl.cast(rows, tl.int64)[:, None] * Dv + feature
    tl.store(pointers, (acc * weight[:, None]).to(out.dtype.element_ty), mask=inside[:, None] & (feature < Dv))
    store_lse(lse, rows, low, m, l, inside)


@kernel
def attention_fwd_kernel(
    q, stride_qb, stride_qh, stride_qm: tl.constexpr,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn: tl.constexpr,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn: tl.constexpr,  # (B, Hk, Sk, Dv)
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), the 32-bit words that are dropped, 1 / (1 - dropout_p); seed None: no dropout
    out,  # (B, H, Sq, Dv); SPLITS > 1: (SPLITS, B, H, Sq, Dv) float32, unnormalised
    lse,  # (2, B, H, Sq); SPLITS > 1: (SPLITS, 2, B, H, Sq), m and l
    unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    splits,
    SPLIT: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    group = H // Hk
    blocks = tl.cdiv(group * Sq, BLOCK_M)
    split = tl.program_id(0) % splits
    pid = tl.program_id(0) // splits
    block = blocks - 1 - pid % blocks  # causal spans: the longest rows first
    b = pid // blocks // Hk
    kv_head = pid // blocks % Hk
    b64, kv_head64 = tl.cast(b, tl.int64), tl.cast(kv_head, tl.int64)

    stacked = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = stacked < group * Sq
    stacked = tl.minimum(stacked, group * Sq - 1)
    head, i = kv_head * group + stacked // Sq, stacked % Sq
    row = (b * H + kv_head * group) * Sq + stacked

    first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, i, Sk)
    first, full_first, full_end, end = key_tiles(first_key, end_key, BLOCK_N)
    if SPLIT:
        part = tl.cdiv(end - first, splits)
        first = tl.minimum(first + split * part, end)
        end = tl.minimum(first + part, end)
        full_first = tl.minimum(tl.maximum(full_first, first), end)
        full_end = tl.maximum(tl.minimum(full_end, end), full_first)

    q_rows = q + b64 * stride_qb + tl.cast(head, tl.int64) * stride_qh + tl.cast(i, tl.int64) * stride_qm
    queries = None if STEP_D else gather_rows(q_rows, inside, D, BLOCK_D)
    k += b64 * stride_kb + kv_head64 * stride_kh
    v += b64 * stride_vb + kv_head64 * stride_vh
    if bias is not None:
        bias = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, head, i)
    plane = b * H + head
    late = unit if PLAIN else LOG2_E

    m = tl.full([BLOCK_M], -INF, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if sink is not None:  # as if it were the first key
        m = tl.load(sink + head) * LOG2_E
        l += 1.0
        if SPLIT:
            m = tl.where(split == 0, m, -INF)
            l = tl.where(split == 0, l, 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for tile in range(full_first, full_end):
        acc, m, l = _step(
            acc, m, l, tile, queries, q_rows, inside, k, v, stride_kn, stride_vn,
            bias, stride_bn, first_key, end_key, Sk, unit, softcap, late, seed, drop_below, plane, i,
            BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D, PLAIN, False, PRECISION,
        )  # fmt: skip
    before = full_first - first
    for edge in tl.range(before + end - full_end, num_stages=1):
        tile = edge + tl.where(edge < before, first, full_end - before)
        acc, m, l = _step(
            acc, m, l, tile, queries, q_rows, inside, k, v, stride_kn, stride_vn,
            bias, stride_bn, first_key, end_key, Sk, unit, softcap, late, seed, drop_below, plane, i,
            BLOCK_N, D, BLOCK_D, Dv, BLOCK_DV, STEP_D, PLAIN, True, PRECISION,
        )  # fmt: skip

    if SPLIT:
        feature = tl.arange(0, BLOCK_DV)[None, :]
        own = tl.cast(split, tl.int64) * all_rows + row
        tl.store(out + own[:, None] * Dv + feature, acc, mask=inside[:, None] & (feature < Dv))
        own += tl.cast(split, tl.int64) * all_rows
        tl.store(lse + own, m, mask=inside)
        tl.store(lse + own + all_rows, l, mask=inside)
    else:
        _store(acc, m, l, out, lse, all_rows, row, inside, gate, head, share, Dv, BLOCK_DV)


@kernel
def attention_merge_kernel(
    parts,  # (splits, B, H, Sq, Dv) float32, unnormalised
    statistics,  # (splits, 2, B, H, Sq), m and l
    gate, share,  # (H,) or None
    out, lse,  # (B, H, Sq, Dv), (2, B, H, Sq)
    H, Sq, all_rows, splits,
    Dv: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < all_rows
    feature = tl.arange(0, BLOCK_DV)[None, :]
    m = tl.full([BLOCK_M], -INF, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for split in range(splits):
        own = tl.cast(split, tl.int64) * all_rows + row
        part = tl.load(parts + own[:, None] * Dv + feature, mask=inside[:, None] & (feature < Dv), other=0.0)
        own += tl.cast(split, tl.int64) * all_rows
        part_m = tl.load(statistics + own, mask=inside, other=-INF)
        part_l = tl.load(statistics + own + all_rows, mask=inside, other=0.0)
        m_new = tl.maximum(m, part_m)
        base = tl.where(m_new == -INF, 0.0, m_new)
        alpha, beta = tl.exp2(m - base), tl.exp2(part_m - base)
        acc = acc * alpha[:, None] + part * beta[:, None]
        l = l * alpha + part_l * beta
        m = m_new
    head = tl.where(inside, row // Sq % H, 0)
    _store(acc, m, l, out, lse, all_rows, row, inside, gate, head, share, Dv, BLOCK_DV)


def attention_fwd(
    problem: AttentionProblem,
    tile,  # fastfuse.tuning.tiles.Tile
    splits: int,  # programs that share the keys of a block of rows
) -> tuple[Tensor, Tensor]:
    """out (B, H, Sq, Dv) in q's dtype, and lse_pair (2, B, H, Sq) float32."""
    q, k, v = problem.q, problem.k, problem.v
    assert v is not None
    shape = (problem.B, problem.H, problem.Sq)
    out, lse = q.new_empty(*shape, problem.Dv), q.new_empty(2, *shape, dtype=torch.float32)
    parts, statistics = out, lse
    if splits > 1:
        parts = q.new_empty(splits, *shape, problem.Dv, dtype=torch.float32)
        statistics = q.new_empty(splits, 2, *shape, dtype=torch.float32)
    values = problem.values()
    grid = (problem.B * problem.Hk * triton.cdiv(problem.rows, tile.block_m) * splits,)
    attention_fwd_kernel[grid](
        q, *q.stride()[:3],
        k, *k.stride()[:3],
        v, *v.stride()[:3],
        out=parts,
        lse=statistics,
        all_rows=lse[0].numel(),
        splits=splits,
        SPLIT=splits > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STEP_D=tile.block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **values,
    )  # fmt: skip
    if splits > 1:
        block_m = 16
        attention_merge_kernel[(triton.cdiv(lse[0].numel(), block_m),)](
            parts,
            statistics,
            values["gate"],
            values["share"],
            out,
            lse,
            problem.H,
            problem.Sq,
            lse[0].numel(),
            splits,
            Dv=values["Dv"],
            BLOCK_DV=values["BLOCK_DV"],
            BLOCK_M=block_m,
            num_warps=4,
        )
    return out, lse
