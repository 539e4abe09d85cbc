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
def _load(pointers, inside, other):
    return tl.load(pointers) if inside is None else tl.load(pointers, mask=inside, other=other)


@triton.jit
def query_terms(
    lse,  # (2, B, H, Sq), or None where `terms` is there
    terms,  # (3, B, H, Sq): lse2, its low part and D_i, as the dq kernel leaves them; or None
    dlse,  # (B, H, Sq), or None
    sink, gate,  # (H,), or None
    at, rows,  # (M,): where the queries are in (B, H, Sq), of so many
    head,  # (M,), or one for all
    inside,  # (M,), or None: all of them
):  # fmt: skip
    """(lse2, its low part, D_i, tanh(gate), dlse, the sink's probability) of each query, all (M,); D_i = 0 from lse."""
    if terms is None:
        lse2, lse2_low = load_lse2(lse, at, rows, inside)
        delta = tl.zeros_like(lse2)
    else:
        lse2 = _load(terms + at, inside, INF)
        lse2_low = _load(terms + tl.cast(rows, tl.int64) + at, inside, 0.0)
        delta = _load(terms + 2 * tl.cast(rows, tl.int64) + at, inside, 0.0)
    given, p_sink, open_ = tl.zeros_like(lse2), tl.zeros_like(lse2), tl.full(lse2.shape, 1.0, tl.float32)
    if dlse is not None:
        given = tl.where(lse2 < INF, _load(dlse + at, inside, 0.0), 0.0)
    if sink is not None:
        p_sink = tl.exp2((tl.load(sink + head) * LOG2_E - lse2) - lse2_low)
    if gate is not None:
        open_ *= tanh(tl.load(gate + head))
    return lse2, lse2_low, delta, open_, given, p_sink


@triton.jit
def gradient_tile(
    x, g,  # tiles of q k^T and dout v^T, float32
    start,  # first key of the tile
    first_key, end_key, terms, i, plane,  # (M,): see attention_tile.scores, query_terms, attention_tile.kept
    bias, stride_bn, Sk, unit, softcap, late,  # see attention_tile.scores
    seed, drop_below, share,
    FITS: tl.constexpr,  # whether some query may see no key outside this tile
    PLAIN: tl.constexpr, MASKED: tl.constexpr, KEY_AXIS: tl.constexpr,
):  # fmt: skip
    """(weight, ds, dx, D, received) of a tile.

    weight = tanh(gate) p keep / (1 - dropout_p), which dv takes; ds, the gradient of s; dx, that of scale q k^T;
    D (M,), and received = p r, whose sum is dgate's.
    """
    lse2, lse2_low, delta, open_, dlse, p_sink = terms
    BLOCK_N: tl.constexpr = x.shape[KEY_AXIS]
    s, u = scores(x, bias, stride_bn, start, first_key, end_key, Sk, unit, softcap, PLAIN, MASKED, KEY_AXIS)
    p = probabilities(s, late, lse2, lse2_low, KEY_AXIS)
    weight, r = p, g
    if seed is not None:
        keep = kept(seed, drop_below, plane, i, start, BLOCK_N, KEY_AXIS)
        weight, r = tl.where(keep, p * share, 0.0), tl.where(keep, g * share, 0.0)
    received, opened, offset = p * r, tl.expand_dims(open_, KEY_AXIS), delta
    if FITS:
        whole = (first_key >= start) & (end_key <= start + BLOCK_N)
        if tl.max(whole.to(tl.int32), 0) > 0:
            center = tl.where(whole, tl.sum(received, KEY_AXIS), 0.0)
            r -= tl.expand_dims(center, KEY_AXIS)
            own = (tl.sum(p * r, KEY_AXIS) - p_sink * center) * open_ - dlse
            offset = tl.where(whole, own, delta)
            delta = center * open_ + offset
    ds = p * (r * opened - tl.expand_dims(offset, KEY_AXIS))
    dx = ds
    if softcap is not None:
        dx = ds * (1.0 - u * u)
    return weight * opened, ds, dx, delta, received
