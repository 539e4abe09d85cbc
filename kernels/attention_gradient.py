"""The gradient of one tile of scores, shared by everything that goes backward.

    g = dout v^T;  r = g keep / (1 - dropout_p)                what reaches p, before the gate
    D_i = tanh(gate) sum_j p_ij r_ij - dlse_i;  ds = p (tanh(gate) r - D_i)

D_i = dout_i . out_i - dlse_i is at hand before any tile, but off by the rounding of out. Where one tile holds all keys
that a query sees, it is summed from that tile instead, in two steps, so that a query with one key has a gradient of 0:

    center = sum_j p_j r_j;  offset = tanh(gate) (sum_j p_j (r_j - center) - p_sink center) - dlse
    ds = p (tanh(gate) (r - center) - offset)

Elsewhere center = 0 and offset = D_i.
"""

import triton
import triton.language as tl

from .attention_tile import INF, LOG2_E, kept, load_lse2, probabilities, scores, tanh


@triton.jit
def query_terms(
    lse,  # (2, B, H, Sq)
    delta,  # (B, H, Sq): D_i, or None where it is not known yet
    dlse,  # (B, H, Sq), or None
    sink, gate,  # (H,), or None
    at, rows,  # (M,): where the queries are in (B, H, Sq), of so many
    head, inside,  # (M,)
):  # fmt: skip
    """(lse2, its low part, tanh(gate), D_i, dlse, the sink's probability) of each query, all (M,)."""
    lse2, lse2_low = load_lse2(lse, at, rows, inside)
    nothing = tl.zeros_like(lse2)
    offset, given, p_sink, open_ = nothing, nothing, nothing, nothing + 1.0
    if delta is not None:
        offset = tl.load(delta + at, mask=inside, other=0.0)
    if dlse is not None:
        given = tl.load(dlse + at, mask=inside & (lse2 < INF), other=0.0)
    if sink is not None:
        p_sink = tl.exp2((tl.load(sink + head) * LOG2_E - lse2) - lse2_low)
    if gate is not None:
        open_ = tanh(tl.load(gate + head))
    return lse2, lse2_low, open_, offset, given, p_sink


@triton.jit
def gradient_tile(
    x, g,  # tiles of q k^T and dout v^T, float32
    start,  # first key of the tile
    first_key, end_key, terms, i, plane,  # (M,): see attention_tile.scores, query_terms, attention_tile.kept
    bias, stride_bn, Sk, unit, softcap, late,  # see attention_tile.scores
    seed, drop_below, share,
    FITS: tl.constexpr,  # whether some query may see no key outside this tile
    PLAIN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(weight, ds, dx, D, received) of a tile.

    weight = tanh(gate) p keep / (1 - dropout_p), which dv takes; ds, the gradient of s; dx, that of scale q k^T;
    D (M,), and received = p r, whose sum is dgate's.
    """
    lse2, lse2_low, open_, delta, dlse, p_sink = terms
    s, u = scores(x, bias, stride_bn, start, first_key, end_key, Sk, unit, softcap, PLAIN, MASKED)
    p = probabilities(s, late, lse2, lse2_low)
    weight, r = p, g
    if seed is not None:
        keep = kept(seed, drop_below, plane, i, start, x.shape[1])
        weight, r = tl.where(keep, p * share, 0.0), tl.where(keep, g * share, 0.0)
    center, offset = tl.zeros_like(delta), delta
    if FITS:
        whole = (first_key >= start) & (end_key <= start + x.shape[1])
        if tl.max(whole.to(tl.int32), 0) > 0:
            own = tl.sum(p * r, 1)
            rest = tl.sum(p * (r - own[:, None]), 1) - p_sink * own
            center = tl.where(whole, own, center)
            offset = tl.where(whole, rest * open_ - dlse, offset)
            delta = center * open_ + offset
    opened = open_[:, None]
    ds = p * ((r - center[:, None]) * opened - offset[:, None])
    dx = ds
    if softcap is not None:
        dx = ds * (1.0 - u * u)
    return weight * opened, ds, dx, delta, p * r
