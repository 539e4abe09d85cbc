"""The chunked vocabulary loss against the logits' cross entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import assert_within_budget
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastfuse as ff
from fastfuse.ops import linear_cross_entropy as op


@pytest.fixture(params=[None, 7], ids=["one_chunk", "chunks"])
def rows_of_a_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(op, "CHUNK_BYTES", request.param * 30 * 4)


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"hidden": (4, 5, 16), "weight": (30, 16), "bias": (30,)}
    return {what: torch.randn(shape).to(dtype).requires_grad_() for what, shape in shapes.items()}


def target() -> Tensor:
    t = torch.randint(30, (4, 5))
    t[0, :3] = -100
    return t


def eager(hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, -2), target.flatten(), **options)


@pytest.mark.usefixtures("rows_of_a_chunk")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"ignore_index": 3}], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_matches_float64(dtype: torch.dtype, options: dict[str, Any], with_bias: bool) -> None:
    x, t = inputs(dtype), target()
    if options.get("ignore_index"):
        t = t.clamp(min=0)
    if not with_bias:
        del x["bias"]

    def run(function: Any, x: dict[str, Tensor]) -> list[Tensor]:
        loss = function(x["hidden"], x["weight"], t, bias=x.get("bias"), **options)
        return [loss, *torch.autograd.grad(1000 * loss, list(x.values()))]  # as under gradient scaling

    doubles = {what: t.detach().double().requires_grad_() for what, t in x.items()}
    results = zip(["loss", *x], run(ff.linear_cross_entropy, x), run(eager, doubles), run(eager, x), strict=True)
    for what, ours, truth, peer in results:
        assert_within_budget(what, ours, truth, peer, dtype)


@pytest.mark.usefixtures("rows_of_a_chunk")
def test_all_targets_ignored() -> None:
    x = inputs()
    loss = ff.linear_cross_entropy(x["hidden"], x["weight"], torch.full((4, 5), -100), bias=x["bias"])
    assert loss == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss, list(x.values())))


def test_no_rows_and_one_vector() -> None:
    x = inputs()
    assert ff.linear_cross_entropy(x["hidden"][:0], x["weight"], target()[:0]) == 0
    one = ff.linear_cross_entropy(x["hidden"][1, 1], x["weight"], torch.tensor(4))
    torch.testing.assert_close(one, F.cross_entropy(x["weight"] @ x["hidden"][1, 1], torch.tensor(4)))


def test_gradcheck_and_gradgradcheck() -> None:
    x = [t.detach().double().requires_grad_() for t in (torch.randn(4, 3), torch.randn(5, 3), torch.randn(5))]
    t = torch.tensor([0, 4, -100, 2])

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ff.linear_cross_entropy(hidden, weight, t, bias=bias, label_smoothing=0.1)

    assert gradcheck(loss, x, check_forward_ad=True)
    assert gradgradcheck(loss, x)


def test_compiles_without_a_graph_break() -> None:
    x, t = inputs(), target()
    compiled = torch.compile(ff.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    ours, plain = (f(x["hidden"], x["weight"], t, bias=x["bias"]) for f in (compiled, ff.linear_cross_entropy))
    torch.testing.assert_close(ours, plain)
    leaves = list(x.values())
    for grad, truth in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(grad, truth)


def test_opcheck() -> None:
    x = [t.detach() for t in inputs().values()]
    arguments = (x[0].flatten(0, 1), x[1], x[2], target().flatten(), -100, 0.1, [True, False, True])
    torch.library.opcheck(torch.ops.fastfuse.linear_cross_entropy.default, arguments)


def test_autocast_takes_all_in_its_dtype() -> None:
    x, t = inputs(), target()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ff.linear_cross_entropy(x["hidden"], x["weight"], t, bias=x["bias"])
    low = [x[what].bfloat16() for what in ("hidden", "weight", "bias")]
    assert torch.equal(loss, ff.linear_cross_entropy(*low[:2], t, bias=low[2]))


GOOD = {"hidden": torch.ones(4, 5, 8), "weight": torch.ones(9, 8), "target": torch.zeros(4, 5, dtype=torch.int64)}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.ones(4, 5, 7)}, ValueError, r"hidden: .*\(9, 8\), got \(4, 5, 7\)"),
    ({"hidden": torch.ones(4, 5, 8, dtype=torch.int64)}, TypeError, "hidden: .*int64"),
    ({"weight": torch.ones(8)}, ValueError, r"weight: .*\(8,\)"),
    ({"weight": torch.ones(9, 8).half()}, TypeError, "weight: .*float32 .*float16"),
    ({"target": torch.ones(4, 5)}, TypeError, "target: .*float32"),
    ({"target": torch.ones(4, dtype=torch.int64)}, ValueError, r"target: .*\(4, 5\) .*got \(4,\)"),
    ({"bias": torch.ones(8)}, ValueError, r"bias: .*\(9,\) .*got \(8,\)"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing: .*-0.1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = GOOD | change
    with pytest.raises(error, match=message):
        ff.linear_cross_entropy(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("target"), **arguments)
