"""The contrastive ops as PyTorch sees them: compile, autocast, opcheck, higher derivatives, torch.func; and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from platforms import PLATFORMS, USABLE, Platform
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastfuse as ff

BACKENDS = [name for name in ("reference", "cpu", "triton") if name in USABLE]
IDS = torch.tensor([0, 1, 0, 2, 1, 3])

LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": lambda a, b, s, **o: ff.clip_loss(a, b, s, label_smoothing=0.1, **o),
    "clip_ids": lambda a, b, s, **o: ff.clip_loss(a, b, s, ids=IDS, **o),
    "siglip": lambda a, b, s, **o: ff.siglip_loss(a, b, s, -s, **o),
    "nce": lambda a, b, s, **o: ff.info_nce_loss(a, b, s, query_ids=IDS, key_ids=IDS.flip(0), **o),
    "sup_con": lambda a, b, s, **o: ff.sup_con_loss(a + b, IDS, s, **o),
    "nt_xent": lambda a, b, s, **o: ff.nt_xent_loss(a, b, s, **o),
}


def leaves(dtype: torch.dtype = torch.float32, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    a, b = (torch.randn(6, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    return a, b, torch.tensor(4.0, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck_and_gradgradcheck(loss: Callable[..., Tensor]) -> None:
    x = leaves(torch.float64, dim=2)
    assert gradcheck(loss, x, check_forward_ad=True)
    assert gradgradcheck(loss, x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_double_backward_of_every_backend(loss: Callable[..., Tensor], backend: str) -> None:
    x = leaves()

    def second(backend: str) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(loss(*x, backend=backend), x, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), x)

    for ours, truth in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_compiles_without_a_graph_break(loss: Callable[..., Tensor], backend: str) -> None:
    x = leaves()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, plain = compiled(*x, backend=backend), loss(*x, backend=backend)
    assert torch.equal(ours, plain)
    for grad, truth in zip(torch.autograd.grad(ours, x), torch.autograd.grad(plain, x), strict=True):
        torch.testing.assert_close(grad, truth)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_torch_func(loss: Callable[..., Tensor]) -> None:
    x = tuple(t.detach() for t in leaves())
    grads = torch.func.grad(loss, argnums=(0, 1, 2))(*x)
    _, forward = torch.func.jvp(loss, x, x)
    torch.testing.assert_close(forward, sum((g * t).sum() for g, t in zip(grads, x, strict=True)))


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.serves("scaled")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_scaled_and_rounded_once(platform: Platform, dtype: torch.dtype) -> None:
    a, b = (torch.randn(67, 259).to(dtype).requires_grad_() for _ in range(2))  # more than one chunk, and a tail
    with platform.active():
        loss = ff.siglip_loss(a, b, torch.tensor(10.0), torch.tensor(-10.0), backend=platform.backend)
        unit = torch.autograd.grad(loss, (a, b), retain_graph=True)
        grads = torch.autograd.grad(loss, (a, b), torch.tensor(4.0))
    for one, four in zip(unit, grads, strict=True):
        assert four.dtype == dtype
        normal = one.abs() > torch.finfo(dtype).smallest_normal  # below, four times a rounded number is another
        assert torch.equal((4 * one)[normal], four[normal])


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    x = tuple(t.detach() for t in leaves())
    ops, keys = torch.ops.fastfuse, (IDS, IDS.flip(0), torch.arange(6), torch.arange(6), True, True)
    torch.library.opcheck(ops.pair_softmax_fwd.default, (*x, *keys, "both", False, backend))
    statistics = ops.pair_softmax_fwd(*x, *keys, "both", False, backend)
    needs = [True, False, True]
    arguments = (torch.tensor(0.1), *x, *keys, "both", 0.0, *statistics, needs, backend)
    torch.library.opcheck(ops.pair_softmax_bwd.default, arguments)
    torch.library.opcheck(ops.pair_sigmoid.default, (*x, -x[2], *keys, [True, False, True, True], backend))
    torch.library.opcheck(ops.similarity_topk.default, (*x[:2], 3, True, backend))
    ranges = (torch.arange(6), torch.arange(6) + 1)
    torch.library.opcheck(ops.retrieval_ranks.default, (*x[:2], IDS, *ranges, True, backend))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_autocast_takes_features_in_its_dtype(loss: Callable[..., Tensor]) -> None:
    a, b, scale = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(a, b, scale)
    if loss is not LOSSES["sup_con"]:  # whose sum is rounded after autocast has it
        assert torch.equal(ours, loss(a.bfloat16(), b.bfloat16(), scale))
    assert ours.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(ours, (a, b, scale)))


A, B = torch.ones(4, 8), torch.ones(4, 8)
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ff.clip_loss(A[0], B, 1.0), ValueError, r"image: .*\(8,\)"),
    (lambda: ff.clip_loss([1.0], B, 1.0), TypeError, "image: .*list"),
    (lambda: ff.clip_loss(A.long(), B, 1.0), TypeError, "image: .*int64"),
    (lambda: ff.clip_loss(A, B.half(), 1.0), TypeError, "text: .*float32 .*float16"),
    (lambda: ff.clip_loss(A, torch.ones(4, 9), 1.0), ValueError, r"text: .*\(4, 8\), got \(4, 9\)"),
    (lambda: ff.clip_loss(A[:, :0], B[:, :0], 1.0), ValueError, "text: .*D >= 1"),
    (lambda: ff.clip_loss(A, B.to("meta"), 1.0), ValueError, "text: .*cpu .*meta"),
    (lambda: ff.clip_loss(A, B, float("nan")), ValueError, "logit_scale: .*nan"),
    (lambda: ff.clip_loss(A, B, "8"), TypeError, "logit_scale: .*str"),
    (lambda: ff.clip_loss(A, B, torch.ones(2)), ValueError, r"logit_scale: .*\(2,\)"),
    (lambda: ff.clip_loss(A, B, torch.ones((), dtype=torch.int64)), TypeError, "logit_scale: .*int64"),
    (lambda: ff.clip_loss(A, B, 1.0, label_smoothing=1.5), ValueError, "label_smoothing: .*1.5"),
    (lambda: ff.clip_loss(A, B, 1.0, ids=torch.arange(3)), ValueError, r"ids: .*\(4,\) .*got \(3,\)"),
    (lambda: ff.clip_loss(A, B, 1.0, ids=torch.ones(4)), TypeError, "ids: .*float32"),
    (lambda: ff.clip_loss(A, B[:3], 1.0, ids=torch.arange(4)), ValueError, r"ids: .*\(4, 8\) and \(3, 8\)"),
    (lambda: ff.clip_loss(A, B, 1.0, group=object()), NotImplementedError, "group: "),
    (lambda: ff.clip_loss(A, B, 1.0, backend="cudnn"), ValueError, "backend: .*'cudnn'"),
    (lambda: ff.clip_loss(A.double(), B.double(), 1.0, backend="cpu"), NotImplementedError, "cpu: "),
    (lambda: ff.siglip_loss(A, B, 1.0, float("inf")), ValueError, "logit_bias: .*inf"),
    (lambda: ff.info_nce_loss(A, B[:3], 1.0), ValueError, r"positives: .*\(4, 8\) .*\(3, 8\)"),
    (lambda: ff.info_nce_loss(A, B, 1.0, positives=torch.arange(4) + 1), ValueError, "positives: .*index < 4 .*1..4"),
    (lambda: ff.info_nce_loss(A, B, 1.0, query_ids=torch.arange(4)), ValueError, "key_ids: .*query_ids"),
    (lambda: ff.nt_xent_loss(A, B[:3], 1.0), ValueError, r"z2: .*\(4, 8\), got \(3, 8\)"),
    (lambda: ff.similarity_topk(A, B, 5), ValueError, r"k: .*<= 4 .*got 5"),
    (lambda: ff.similarity_topk(A, B, 1.0), TypeError, "k: .*float"),
    (lambda: ff.retrieval_ranks(A, B, torch.arange(3)), ValueError, r"positives: .*got \(3,\)"),
    (lambda: ff.retrieval_ranks(A, B, torch.arange(4) - 1), ValueError, "positives: .*-1..2"),
    (lambda: ff.retrieval_ranks(A, B, torch.ones(4)), TypeError, "positives: .*float32"),
    (lambda: ff.recall_at_k(A, B[:3]), ValueError, r"image_ids, text_ids: .*\(3, 8\)"),
    (lambda: ff.recall_at_k(A, B, image_ids=torch.arange(4)), ValueError, "text_ids: .*image_ids"),
    (lambda: ff.recall_at_k(A, B, ks=(0,)), ValueError, "ks: .*0"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_errors_name_the_argument(bad: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bad()
