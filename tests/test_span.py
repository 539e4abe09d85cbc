"""KeySpan: every constructor and `&` equal their dense meaning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastfuse import KeySpan

sizes = st.integers(0, 12)


def grid(Sq: int, Sk: int) -> tuple[Tensor, Tensor]:
    return torch.arange(Sq)[None, :, None], torch.arange(Sk)[None, None, :]


def assert_means(span: KeySpan, dense: Tensor, Sk: int) -> None:
    got, dense = torch.broadcast_tensors(span.to_dense(Sk), dense)
    assert torch.equal(got, dense)


@given(st.lists(st.integers(-2, 15), min_size=1, max_size=4), sizes)
def test_lengths(kv_len: list[int], Sk: int) -> None:
    lengths = torch.tensor(kv_len)
    assert_means(KeySpan.lengths(lengths), grid(1, Sk)[1] < lengths[:, None, None], Sk)


@given(sizes, sizes)
def test_causal(Sq: int, Sk: int) -> None:
    i, j = grid(Sq, Sk)
    assert_means(KeySpan.causal(Sq, Sk), j <= i + Sk - Sq, Sk)


@given(sizes, sizes, st.integers(-3, 14), st.integers(-3, 14))
def test_window(Sq: int, Sk: int, left: int, right: int) -> None:
    i, j = grid(Sq, Sk)
    offset = j - (i + Sk - Sq)
    assert_means(KeySpan.window(Sq, Sk, left, right), (-left <= offset) & (offset <= right), Sk)


@given(st.lists(st.integers(0, 14), min_size=1, max_size=3), sizes, sizes)
def test_prefix(prefix_len: list[int], Sq: int, Sk: int) -> None:
    i, j = grid(Sq, Sk)
    prefix = torch.tensor(prefix_len)
    assert_means(KeySpan.prefix(prefix, Sq, Sk), (j < prefix[:, None, None]) | (j <= i + Sk - Sq), Sk)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_packed(documents: list[tuple[int, int]]) -> None:
    of_query, of_key = (
        torch.cat([torch.full((length[side],), n) for n, length in enumerate(documents)]) for side in (0, 1)
    )
    offsets = (torch.tensor([0, *[length[side] for length in documents]]).cumsum(0) for side in (0, 1))
    span = KeySpan.packed(*offsets)
    assert_means(span, (of_query[:, None] == of_key[None, :])[None], len(of_key))


@given(st.data())
def test_media(data: st.DataObject) -> None:
    n, Sq, B = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    widths = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=1))
    offsets = torch.tensor([[0, *row] for row in widths]).cumsum(1)
    index = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(-1, n - 1), min_size=Sq, max_size=Sq), min_size=B, max_size=B))
    )
    Sk = int(offsets[0, -1])
    j = torch.arange(Sk)
    latest, previous = torch.zeros(2, B, Sq, Sk, dtype=torch.bool)
    for b in range(B):
        for i in range(Sq):
            m = int(index[b, i])
            if m >= 0:
                latest[b, i] = (offsets[0, m] <= j) & (j < offsets[0, m + 1])
                previous[b, i] = j < offsets[0, m + 1]
    assert_means(KeySpan.latest_media(index, offsets), latest, Sk)
    assert_means(KeySpan.previous_media(index, offsets), previous, Sk)


ends = st.lists(st.integers(-3, 15), min_size=6, max_size=6).map(
    lambda row: torch.tensor(row, dtype=torch.int32).view(2, 3)
)


@given(ends, ends, ends, sizes, st.booleans())
def test_and_is_the_intersection(lo: Tensor, hi: Tensor, other: Tensor, Sk: int, broadcast: bool) -> None:
    a, b = KeySpan(lo, hi), KeySpan(other, other + 3)
    if broadcast:
        b = KeySpan(b.lo[:1], b.hi[:, :1])
    assert_means(a & b, a.to_dense(Sk) & b.to_dense(Sk), Sk)


@given(ends, ends, sizes)
def test_from_dense_inverts_to_dense(lo: Tensor, hi: Tensor, Sk: int) -> None:
    dense = KeySpan(lo, hi).to_dense(Sk)
    assert_means(KeySpan.from_dense(dense), dense, Sk)


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_from_dense_refuses_what_is_no_interval(row: list[bool]) -> None:
    seen = [j for j, visible in enumerate(row) if visible]
    mask = torch.tensor([[True] * len(row), row])
    if seen and seen[-1] - seen[0] + 1 != len(seen):
        with pytest.raises(ValueError, match="row 1 of batch entry 0 is no interval"):
            KeySpan.from_dense(mask)
    else:
        assert_means(KeySpan.from_dense(mask), mask[None], len(row))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeySpan(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int32)), TypeError, "lo: .*float32"),
        (lambda: KeySpan(torch.zeros(3, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)), ValueError, "lo"),
        (
            lambda: KeySpan(*(torch.zeros(n, 1, dtype=torch.int32) for n in (2, 3))),
            ValueError,
            r"\(2, 1\) and \(3, 1\)",
        ),
        (lambda: KeySpan.lengths(torch.tensor([0.5])), TypeError, "kv_len: .*float32"),
        (lambda: KeySpan.lengths(torch.tensor([[1]])), ValueError, r"kv_len: .*\(1, 1\)"),
        (lambda: KeySpan.packed(torch.tensor([0, 1]), torch.tensor([0])), ValueError, r"cu_seqlens_q, cu_seqlens_k"),
        (lambda: KeySpan.latest_media(torch.zeros(2, 3).long(), torch.zeros(3, 2).long()), ValueError, "media_offsets"),
        (lambda: KeySpan.from_dense(torch.zeros(2, 2)), TypeError, "mask: .*float32"),
        (lambda: KeySpan.from_dense(torch.zeros(2).bool()), ValueError, r"mask: .*\(2,\)"),
    ],
)
def test_errors_name_the_argument(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
