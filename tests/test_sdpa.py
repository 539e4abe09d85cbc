"""`scaled_dot_product_attention` means what torch's means."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastfuse as ff

SHAPES = [
    ((2, 3, 5, 16), (2, 3, 7, 16), (2, 3, 7, 16)),
    ((2, 3, 5, 16), (2, 3, 7, 16), (2, 3, 7, 24)),
    ((3, 5, 16), (3, 7, 16), (3, 7, 16)),
    ((5, 16), (7, 16), (7, 12)),
    ((2, 2, 3, 5, 7), (2, 2, 3, 7, 7), (2, 2, 3, 7, 7)),
    ((2, 1, 5, 16), (1, 3, 7, 16), (1, 3, 7, 16)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("mask", [None, "causal", "bool", "float"])
def test_same_as_torch(shapes: tuple[tuple[int, ...], ...], mask: str | None) -> None:
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    options: dict[str, object] = {"scale": 0.3}
    if mask == "causal":
        options["is_causal"] = True
    elif mask is not None:
        options["attn_mask"] = torch.rand(5, 7) > 0.3 if mask == "bool" else torch.randn(5, 7)
    outs = [f(query, key, value, **options) for f in (ff.scaled_dot_product_attention, F.scaled_dot_product_attention)]
    torch.testing.assert_close(*outs)
    grads = [torch.autograd.grad(out.sin().sum(), (query, key, value)) for out in outs]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (2, 3, 5, 7), (2, 1, 5, 1)], ids=str)
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    q, k = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 7, 16)
    mask = torch.randn(shape)
    torch.testing.assert_close(
        ff.scaled_dot_product_attention(q, k, k, mask), F.scaled_dot_product_attention(q, k, k, mask)
    )


def test_grouped_queries() -> None:
    q, k = torch.randn(2, 6, 5, 16), torch.randn(2, 2, 7, 16)
    torch.testing.assert_close(
        ff.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
    )


def test_a_row_that_sees_nothing_gives_zero() -> None:
    q = torch.randn(1, 1, 2, 8)
    mask = torch.tensor([[True, True], [False, False]])
    out = ff.scaled_dot_product_attention(q, q, q, mask)
    assert (out[0, 0, 1] == 0).all()


def _call(*shapes: tuple[int, ...], **options: object) -> Tensor:
    return ff.scaled_dot_product_attention(*(torch.randn(shape) for shape in shapes), **options)  # type: ignore[arg-type]


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"query: .*\(4,\)"):
        _call((4,), (4, 4), (4, 4))
    with pytest.raises(ValueError, match=r"query, key, value: .*query \(2, 3, 5, 8\), key \(3, 3, 5, 8\)"):
        _call((2, 3, 5, 8), (3, 3, 5, 8), (3, 3, 5, 8))
    with pytest.raises(ValueError, match="is_causal"):
        _call((4, 4), (4, 4), (4, 4), attn_mask=torch.ones(4, 4), is_causal=True)
