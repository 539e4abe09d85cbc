"""Sums of whole score tiles over heads and batches: attention maps, and the gradient of a bias that is broadcast.

    full    (B, H, Sq, Sk)   p                      dbias   sum of ds over the dimensions in which the bias is broadcast
    mean    (B, Sq, Sk)      mean of p over heads
    keys    (B, Sk)          that, summed over queries

A program has one tile of queries and keys and adds up what its (batch, head) pairs have there, in order; where a result
has one number for all queries or all keys, it adds up the tile as well and leaves one row or column of partial sums.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .attention_gradient import gradient_tile, query_terms
from .attention_problem import AttentionProblem
from .attention_tile import (
    LOG2_E,
    bias_rows,
    gather_rows,
    load_lse2,
    load_rows,
    probabilities,
    product_in_steps,
    scores,
    span_ends,
)


@kernel
def attention_sums_kernel(
    q, stride_qb, stride_qh, stride_qm: tl.constexpr,  # (B, H, Sq, D)
    k, stride_kb, stride_kh, stride_kn: tl.constexpr,  # (B, Hk, Sk, D)
    v, stride_vb, stride_vh, stride_vn: tl.constexpr,  # (B, Hk, Sk, Dv), or None: probabilities are added up, not ds
    dout, stride_dob, stride_doh, stride_dom: tl.constexpr,  # (B, H, Sq, Dv), or None as v
    lo, hi, stride_sb, stride_sm,  # (B or 1, Sq or 1), or None
    bias, stride_bb, stride_bh, stride_bm, stride_bn,  # (B or 1, H or 1, Sq or 1, Sk or 1), or None
    sink, gate,  # (H,), or None
    seed, drop_below, share,  # (), or None
    lse,  # (2, B, H, Sq), or None where terms are there
    terms,  # (3, B, H, Sq): lse2, its low part and D_i, or None as v
    dlse,  # (B, H, Sq), or None
    sums,  # (parts, planes, query blocks or Sq, key blocks or Sk)
    factor,  # of every sum
    unit, softcap,
    H, Hk, Sq, Sk,
    all_rows,  # B H Sq
    planes_h,  # (batch, head) planes of the result: a batch or all, a head or all
    inner_b, inner_h,  # the pairs that one plane adds up
    parts,  # programs that share them
    SUM_M: tl.constexpr, SUM_N: tl.constexpr,  # whether the result has one number for all queries, for all keys
    FITS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, Dv: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(Sq, BLOCK_M), tl.cdiv(Sk, BLOCK_N)
    pid = tl.program_id(0)
    block_n = pid % blocks_n
    block_m = pid // blocks_n % blocks_m
    plane = pid // (blocks_n * blocks_m)  # of all parts
    part = plane % parts
    first_b, first_h = plane // parts // planes_h, plane // parts % planes_h

    start = block_n * BLOCK_N
    start64 = tl.cast(start, tl.int64)
    key = start + tl.arange(0, BLOCK_N)
    i = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = i < Sq
    row = i
    i = tl.minimum(i, Sq - 1)
    i64 = tl.cast(i, tl.int64)
    late = unit if PLAIN else LOG2_E
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    share_of_pairs = tl.cdiv(inner_b * inner_h, parts)
    for pair in range(part * share_of_pairs, tl.minimum((part + 1) * share_of_pairs, inner_b * inner_h)):
        b, head = first_b + pair // inner_h, first_h + pair % inner_h
        b64, head64, kv_head64 = tl.cast(b, tl.int64), tl.cast(head, tl.int64), tl.cast(head // (H // Hk), tl.int64)
        heads = tl.zeros_like(i) + head
        index = b * H + heads
        first_key, end_key = span_ends(lo, hi, stride_sb, stride_sm, b, i, Sk)
        sees = tl.maximum(first_key, start) < tl.minimum(end_key, start + BLOCK_N)
        if tl.max(sees.to(tl.int32), 0) > 0:
            q_rows = q + b64 * stride_qb + head64 * stride_qh + i64 * stride_qm
            queries = None if STEP_D else gather_rows(q_rows, inside, D, BLOCK_D)
            k_tile = k + b64 * stride_kb + kv_head64 * stride_kh + start64 * stride_kn
            if STEP_D:
                k_rows = k_tile + tl.arange(0, BLOCK_N) * stride_kn
                x = product_in_steps(q_rows, inside, k_rows, key < Sk, D, BLOCK_D, STEP_D, PRECISION)
            else:
                keys = load_rows(k_tile, stride_kn, Sk - start, BLOCK_N, D, BLOCK_D, True)
                x = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            bias_i = bias
            if bias is not None:
                bias_i = bias_rows(bias, stride_bb, stride_bh, stride_bm, b, heads, i)
            if v is None:
                lse2, lse2_low = load_lse2(lse, index * Sq + i, all_rows, inside)
                s, _ = scores(x, bias_i, stride_bn, start, first_key, end_key, Sk, unit, softcap, PLAIN, True, 1)
                acc += probabilities(s, late, lse2, lse2_low, 1)
            else:
                dout_rows = dout + b64 * stride_dob + head64 * stride_doh + i64 * stride_dom
                douts = None if STEP_D else gather_rows(dout_rows, inside, Dv, BLOCK_DV)
                v_tile = v + b64 * stride_vb + kv_head64 * stride_vh + start64 * stride_vn
                if STEP_D:
                    v_rows = v_tile + tl.arange(0, BLOCK_N) * stride_vn
                    g = product_in_steps(dout_rows, inside, v_rows, key < Sk, Dv, BLOCK_DV, STEP_D, PRECISION)
                else:
                    values = load_rows(v_tile, stride_vn, Sk - start, BLOCK_N, Dv, BLOCK_DV, True)
                    g = tl.dot(douts, tl.trans(values), input_precision=PRECISION)
                terms_i = query_terms(None, terms, dlse, sink, gate, index * Sq + i, all_rows, head, inside)
                _, ds, _, _, _ = gradient_tile(
                    x, g, start, first_key, end_key, terms_i, i, index,
                    bias_i, stride_bn, Sk, unit, softcap, late, seed, drop_below, share, FITS, PLAIN, True, 1,
                )  # fmt: skip
                acc += ds

    acc *= factor
    height = blocks_m if SUM_M else Sq
    width = blocks_n if SUM_N else Sk
    out = sums + ((tl.cast(part, tl.int64) * (tl.num_programs(0) // (blocks_n * blocks_m * parts)) + plane // parts)
                  * height) * width  # fmt: skip
    if SUM_M and SUM_N:
        tl.store(out + block_m * width + block_n, tl.sum(tl.sum(acc, 1), 0))
    elif SUM_M:
        tl.store(out + block_m * width + key, tl.sum(acc, 0), mask=key < Sk)
    elif SUM_N:
        tl.store(out + row * width + block_n, tl.sum(acc, 1), mask=inside)
    else:
        pointers = out + tl.cast(row, tl.int64)[:, None] * width + key[None, :]
        tl.store(pointers, acc.to(sums.dtype.element_ty), mask=inside[:, None] & (key < Sk)[None, :])


def attention_map(
    problem: AttentionProblem,
    lse: Tensor,  # (2, B, H, Sq), contiguous
    mode: str,
    tile,  # fastfuse.tuning.tiles.Tile
    processors: int,
) -> Tensor:
    """float32: "full" (B, H, Sq, Sk), "mean" (B, Sq, Sk), "keys" (B, Sk)."""
    heads = problem.H if mode == "full" else 1
    factor = heads / problem.H
    shape = (problem.B, heads, 1 if mode == "keys" else problem.Sq, problem.Sk)
    summed = _sums(problem, None, None, lse, None, shape, factor, torch.float32, tile, processors)
    return summed if mode == "full" else summed[:, 0] if mode == "mean" else summed[:, 0, 0]


def attention_dbias(
    problem: AttentionProblem,
    dout: Tensor,  # (B, H, Sq, Dv), last dim contiguous
    dlse: Tensor | None,  # (B, H, Sq)
    terms: Tensor,  # (3, B, H, Sq), as the dq kernel leaves them
    tile,  # fastfuse.tuning.tiles.Tile
    processors: int,
) -> Tensor:
    """The bias's gradient in its shape and dtype."""
    bias = problem.bias
    assert bias is not None
    return _sums(problem, dout, dlse, None, terms, bias.shape, 1.0, bias.dtype, tile, processors)


def _sums(
    problem: AttentionProblem,
    dout: Tensor | None,
    dlse: Tensor | None,
    lse: Tensor | None,
    terms: Tensor | None,
    shape: tuple[int, ...],  # of the result: (B or 1, H or 1, Sq or 1, Sk or 1)
    factor: float,
    dtype: torch.dtype,
    tile,
    processors: int,
) -> Tensor:
    q, k, v = problem.q, problem.k, problem.v if dout is not None else None
    blocks_m, blocks_n = triton.cdiv(problem.Sq, tile.block_m), triton.cdiv(problem.Sk, tile.block_n)
    planes = shape[0] * shape[1]
    inner_b, inner_h = problem.B // shape[0], problem.H // shape[1]
    programs = planes * blocks_m * blocks_n
    parts = min(triton.cdiv(2 * processors, programs), inner_b * inner_h)
    sum_m, sum_n = shape[2] < problem.Sq, shape[3] < problem.Sk
    partial = (parts, planes, blocks_m if sum_m else problem.Sq, blocks_n if sum_n else problem.Sk)
    whole = math.prod(partial) == math.prod(shape)
    sums = q.new_empty(partial, dtype=dtype if whole else torch.float32)
    attention_sums_kernel[(programs * parts,)](
        q, *q.stride()[:3],
        k, *k.stride()[:3],
        v, *((0, 0, 0) if v is None else v.stride()[:3]),
        dout, *((0, 0, 0) if dout is None else dout.stride()[:3]),
        lse=lse,
        terms=terms,
        dlse=dlse,
        sums=sums,
        factor=factor,
        all_rows=problem.B * problem.H * problem.Sq,
        planes_h=shape[1],
        inner_b=inner_b,
        inner_h=inner_h,
        parts=parts,
        SUM_M=sum_m,
        SUM_N=sum_n,
        FITS=problem.fits(tile.block_n),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STEP_D=tile.block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **problem.scores(),
        **problem.values(),
    )  # fmt: skip
    if not whole:
        sums = sums.sum(0)
        sums = sums.sum(1, keepdim=True) if sum_m else sums
        sums = sums.sum(2, keepdim=True) if sum_n else sums
    return sums.reshape(shape).to(dtype)
