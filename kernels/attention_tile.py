"""One tile of attention: the device functions that forward, backward, maps and the bias gradient share.

    x = q k^T                                                   the products of a tile
    s = x                                                       PLAIN: no softcap, no float bias, scale > 0
    s = softcap tanh(scale x / softcap) + bias                  else; hidden keys are -inf in either case
    p = 2^(late s - lse2),  late = scale log2(e) where PLAIN, else log2(e)

Exponents are to the base 2, with the scale folded in; the multiplication by `late` shares an FMA with the subtraction.

KEY_AXIS of a tile is 1 where a program has queries and walks over keys, (M, N), and 0 where it has keys and walks over
queries, (N, M): the weights are then laid out as their next product takes them, in registers.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


@triton.jit
def tanh(x):
    """1 - 2 / (exp(2 |x|) + 1), and an odd polynomial below 0.5 where that would cancel."""
    a = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(a, 20.0) * (2.0 * LOG2_E)) + 1.0)
    t = a * a
    series = 1.744774565e-2
    series = series * t - 5.313441627e-2
    series = series * t + 1.332701241e-1
    series = series * t - 3.333318370e-1
    y = tl.where(a < 0.5, series * t * a + a, far)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def load_rows(rows, stride, count, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """(BLOCK, BLOCK_D) from `rows` on, `stride` apart; 0 from feature D on and, where MASKED, from row `count` on."""
    row = tl.arange(0, BLOCK)[:, None]
    feature = tl.arange(0, BLOCK_D)[None, :]
    pointers = rows + row * stride + feature
    if MASKED:
        tile = tl.load(pointers, mask=(row < count) & (feature < D), other=0.0)
    elif D == BLOCK_D:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=feature < D, other=0.0)
    return tile


@triton.jit
def gather_rows(rows, inside, D, BLOCK_D: tl.constexpr):
    """(M, BLOCK_D) from the pointers `rows` (M,); 0 from feature D on and where not `inside` (M,)."""
    feature = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(rows[:, None] + feature, mask=inside[:, None] & (feature < D), other=0.0)


@triton.jit
def product_in_steps(
    a, a_inside, b, b_inside,  # pointers (M,), (N,) to rows, and whether they are there
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a b^T (M, N), STEP_D features at a time, both read anew: a loop, so that no step's operands outlive it."""
    x = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
    for begin in range(0, BLOCK_D, STEP_D):
        rows = gather_rows(a + begin, a_inside, D - begin, STEP_D)
        others = gather_rows(b + begin, b_inside, D - begin, STEP_D)
        x = tl.dot(rows, tl.trans(others), x, input_precision=PRECISION)
    return x


@triton.jit
def span_ends(lo, hi, stride_b, stride_m, b, i, Sk):
    """The first key that each query i (M,) sees and the one after the last, within 0..Sk; int32 (M,)."""
    first, end = tl.zeros_like(i), tl.zeros_like(i) + Sk
    if lo is not None:
        at = tl.cast(b, tl.int64) * stride_b + i * stride_m
        first, end = tl.maximum(tl.load(lo + at), first), tl.minimum(tl.load(hi + at), end)
    return first, end


@triton.jit
def key_tiles(first_key, end_key, BLOCK_N: tl.constexpr):
    """(first, full_first, full_end, end) of the tiles of keys that a block of queries with these ends (M,) works on.

    Tiles first..end hold all keys that any query sees; in full_first..full_end every query sees every key, so that they
    need no mask and no bounds.
    """
    sees = first_key < end_key
    first = tl.min(tl.where(sees, first_key, 2147483647), 0) // BLOCK_N
    end = tl.maximum((tl.max(tl.where(sees, end_key, 0), 0) + BLOCK_N - 1) // BLOCK_N, first)
    full_first = tl.minimum((tl.max(first_key, 0) + BLOCK_N - 1) // BLOCK_N, end)
    full_end = tl.maximum(tl.minimum(tl.min(end_key, 0) // BLOCK_N, end), full_first)
    return first, full_first, full_end, end


@triton.jit
def bias_rows(bias, stride_b, stride_h, stride_m, b, head, i):
    """Pointers (M,) to the bias of each query i of `head`, both (M,)."""
    b, head, i = tl.cast(b, tl.int64), tl.cast(head, tl.int64), tl.cast(i, tl.int64)
    return bias + b * stride_b + head * stride_h + i * stride_m


@triton.jit
def scores(
    x,  # tile of q k^T, float32
    bias,  # pointers (M,) to each query's row of the bias, float or bool, or None
    stride_bn,  # or None: one bias for all keys
    start,  # first key of the tile
    first_key, end_key,  # (M,): what each query sees
    Sk,
    unit,  # scale, or scale / softcap
    softcap,  # or None
    PLAIN: tl.constexpr,
    MASKED: tl.constexpr,
    KEY_AXIS: tl.constexpr,
):  # fmt: skip
    """(s, u): s as said at the top, u the tanh of softcap, whose slope is 1 - u^2 (x itself without softcap)."""
    key = tl.expand_dims(start + tl.arange(0, x.shape[KEY_AXIS]), 1 - KEY_AXIS)
    u = x
    if not PLAIN:
        x = x * unit
        if softcap is not None:
            u = tanh(x)
            x = u * softcap
    if bias is not None:
        if stride_bn is None:
            added = tl.load(tl.expand_dims(bias, KEY_AXIS))
        else:
            pointers = tl.expand_dims(bias + tl.cast(start, tl.int64) * stride_bn, KEY_AXIS) + (key - start) * stride_bn
            added = tl.load(pointers, mask=key < Sk, other=0) if MASKED else tl.load(pointers)
        x = tl.where(added, x, -INF) if added.dtype.is_int() else x + added.to(tl.float32)
    if MASKED:
        visible = (key >= tl.expand_dims(first_key, KEY_AXIS)) & (key < tl.expand_dims(end_key, KEY_AXIS))
        x = tl.where(visible, x, -INF)
    return x, u


@triton.jit
def kept(seed, drop_below, plane, i, start, BLOCK_N: tl.constexpr, KEY_AXIS: tl.constexpr):
    """Which elements of a tile dropout keeps: Philox 4x32-10 of counter (j div 4, i, plane = b H + h, 0), word j mod 4.

    i and plane are (M,), the tile's keys are start.. and start is a multiple of 4.
    """
    quad = start // 4 + tl.arange(0, BLOCK_N // 4)
    w0, w1, w2, w3 = tl.philox(tl.load(seed), quad[None, :], i[:, None], plane[:, None], 0)
    least = tl.full([], drop_below, tl.uint32)
    keep = tl.interleave(tl.interleave(w0 >= least, w2 >= least), tl.interleave(w1 >= least, w3 >= least))
    return keep if KEY_AXIS == 1 else tl.trans(keep)


@triton.jit
def softmax_step(s, late, m, l):
    """One step of the online softmax over a tile (M, N): (p, m, l, alpha), all relative to the new maximum m.

    m' = max(m, late max_j s_j);  alpha = 2^(m - m');  p = 2^(late s - m');  l' = alpha l + sum_j p_j
    """
    m_new = tl.maximum(m, tl.max(s, 1) * late)
    base = tl.where(m_new == -INF, 0.0, m_new)
    p = tl.exp2(s * late - base[:, None])
    alpha = tl.exp2(m - base)
    return p, m_new, alpha * l + tl.sum(p, 1), alpha


@triton.jit
def store_lse(lse, at, low, m, l, inside):
    """The natural log-sum-exp m ln 2 + ln l to lse[at], and what float32 leaves out of it to lse[at + low].

    float64 here is arithmetic of a row, not of an element.
    """
    blind = (m == -INF) | (l == 0.0)
    exact = tl.where(blind, 0.0, m).to(tl.float64) + tl.log2(tl.where(blind, 1.0, l).to(tl.float64))
    exact *= LN_2
    high = exact.to(tl.float32)
    tl.store(lse + at, tl.where(blind, -INF, high), mask=inside)
    tl.store(lse + at + low, (exact - high.to(tl.float64)).to(tl.float32), mask=inside)


@triton.jit
def load_lse2(lse, at, low, inside):
    """(high, low): the log-sum-exp to the base 2 as two float32; +inf, so that p = 0, where a query sees nothing."""
    high = tl.load(lse + at, mask=inside, other=-INF)
    rest = tl.load(lse + at + low, mask=inside, other=0.0)
    blind = high == -INF
    exact = (tl.where(blind, 0.0, high).to(tl.float64) + rest.to(tl.float64)) * LOG2_E
    high2 = exact.to(tl.float32)
    return tl.where(blind, INF, high2), (exact - high2.to(tl.float64)).to(tl.float32)


@triton.jit
def probabilities(s, late, lse2, lse2_low, KEY_AXIS: tl.constexpr):
    """2^(late s - lse2) of a tile, with the log-sum-exp in two parts (M,)."""
    return tl.exp2((s * late - tl.expand_dims(lse2, KEY_AXIS)) - tl.expand_dims(lse2_low, KEY_AXIS))
