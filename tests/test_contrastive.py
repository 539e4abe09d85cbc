"""Every contrastive case on every backend against float64: losses and all gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import eager_contrastive
import pytest
import torch
from budget import assert_within_budget
from cases_contrastive import CONTRASTIVE_CASES, ContrastiveCase, ContrastiveInputs, call, make_inputs
from platforms import EVERYWHERE, PAIRS, PLATFORMS, Platform, common_dtype, name
from torch import Tensor

import fastfuse as ff
from fastfuse.backends import load

Results = dict[str, Tensor]


def run(module: Any, case: ContrastiveCase, inputs: ContrastiveInputs, **options: Any) -> Results:
    loss = call(getattr(module, case.loss), inputs, **options)
    grads = torch.autograd.grad(loss, list(inputs.leaves.values()))
    return {"loss": loss} | {f"d{what}": grad for what, grad in zip(inputs.leaves, grads, strict=True)}


@cache
def expected(case: ContrastiveCase, dtype: torch.dtype, device: str) -> tuple[ContrastiveInputs, Results, Results]:
    """The inputs, the float64 truth, and eager PyTorch in the inputs' dtype."""
    inputs = make_inputs(case, dtype, device)
    with torch.device(device):
        truth, peer = (run(eager_contrastive, case, inputs, dtype=d) for d in (torch.float64, dtype))
    return inputs, truth, peer


def check_case(case: ContrastiveCase, backend: str, dtype: torch.dtype, device: str = "cpu") -> Results:
    """Loss and gradients, which are within the budget."""
    inputs, truth, peer = expected(case, dtype, device)
    ours = run(ff, case, inputs, backend=backend)
    for what in truth:
        results = ours[what], truth[what], peer[what]
        if case.zero_row and dtype == torch.float16 and what == "da":  # does not fit float16
            assert ours[what][0].abs().max() == torch.finfo(dtype).max
            results = ours[what][1:], truth[what][1:], peer[what][1:]
        assert_within_budget(what, *results, dtype)
    assert ours["loss"].dtype == torch.float32
    assert ours["da"].dtype == dtype
    return ours


@pytest.mark.parametrize(("platform", "dtype"), EVERYWHERE, ids=name)
@pytest.mark.parametrize("case", CONTRASTIVE_CASES, ids=name)
def test_matches_float64(case: ContrastiveCase, platform: Platform, dtype: torch.dtype) -> None:
    with platform.active():
        check_case(case, platform.backend, dtype, platform.device)


@pytest.mark.parametrize(("forward", "backward"), PAIRS, ids=name)
@pytest.mark.parametrize("case_name", ["clip_ids", "nce_ids", "sup_con_chunks"])
def test_any_forward_pairs_with_any_backward(case_name: str, forward: Platform, backward: Platform) -> None:
    case = next(case for case in CONTRASTIVE_CASES if case.name == case_name)
    inputs, truth, peer = expected(case, common_dtype(forward, backward), forward.device)
    op = torch.ops.fastfuse.pair_softmax_bwd
    with forward.active():
        loss = call(getattr(ff, case.loss), inputs, backend=forward.backend)
    node = loss.grad_fn
    while node is not None and "PairSoftmax" not in node.name():
        node = node.next_functions[0][0]
    assert node is not None
    *options, _ = node.options
    skip_positives, normalize, mode, label_smoothing, over_positives = options
    *saved, rows, row_count, cols, col_count, _ = node.saved_tensors
    count = max(int((row_count > 0).sum()), 1) if over_positives else len(row_count) * (2 if mode == "both" else 1)
    needs = [True, saved[1] is not None, True]
    with backward.active():
        da, db, dscale = op(
            torch.tensor(1.0 / count, device=forward.device), *saved, skip_positives, normalize, mode, label_smoothing,
            rows, row_count, cols, col_count, needs, backward.backend,
        )  # fmt: skip
    for what, grad in (("da", da), ("db", db), ("dscale", dscale)):
        if what in truth:
            assert_within_budget(what, grad, truth[what], peer[what], inputs.leaves["a"].dtype)


@pytest.mark.parametrize(("platform", "dtype"), [(p, d) for p, d in EVERYWHERE if p.backend == "cpu"], ids=name)
@pytest.mark.parametrize("case_name", ["clip_strips", "nce_ids", "sup_con_chunks"])
def test_matches_float64_without_keeping_products(
    case_name: str, platform: Platform, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(load(platform.backend), "pair_softmax_fwd_kept")
    case = next(case for case in CONTRASTIVE_CASES if case.name == case_name)
    with platform.active():
        check_case(case, platform.backend, dtype, platform.device)


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.backend == "cpu"], ids=name)
@pytest.mark.parametrize("case_name", ["clip_strips", "siglip_strips", "sup_con_chunks"])
def test_results_do_not_depend_on_the_threads(case_name: str, platform: Platform) -> None:
    case = next(case for case in CONTRASTIVE_CASES if case.name == case_name)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with platform.active():
                results.append(run(ff, case, make_inputs(case, torch.bfloat16), backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for what, value in results[0].items():
            assert torch.equal(value, other[what]), what


@pytest.mark.parametrize(("platform", "dtype"), EVERYWHERE, ids=name)
@pytest.mark.parametrize("case_name", ["clip_smooth_ids", "siglip_ids", "nt_xent_strips"])
def test_results_are_deterministic(case_name: str, platform: Platform, dtype: torch.dtype) -> None:
    case = next(case for case in CONTRASTIVE_CASES if case.name == case_name)
    inputs = make_inputs(case, dtype, platform.device)
    with platform.active():
        first, second = (run(ff, case, inputs, backend=platform.backend) for _ in range(2))
    for what in first:
        assert torch.equal(first[what], second[what]), what


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.backend == "triton"], ids=name)
@pytest.mark.parametrize("case_name", ["clip_strips", "siglip_strips", "nt_xent_strips"])
def test_gradients_in_many_chunks(case_name: str, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CONTRASTIVE_CASES if case.name == case_name)
    inputs, truth, peer = expected(case, torch.float32, platform.device)
    monkeypatch.setattr("fastfuse.kernels.pair_chunks.CHUNK_BYTES", 0)
    ours = run(ff, case, inputs, backend=platform.backend)
    for what in truth:
        assert_within_budget(what, ours[what], truth[what], peer[what], torch.float32)


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0)])
def test_empty_sides(platform: Platform, sizes: tuple[int, int]) -> None:
    options = {"device": platform.device, "dtype": platform.dtype, "requires_grad": True}
    a, b = (torch.randn(n, 16, **options) for n in sizes)
    scale, nobody = torch.tensor(10.0, device=platform.device, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    with platform.active():
        losses = [
            ff.clip_loss(a, b, scale, label_smoothing=0.1, backend=platform.backend),
            ff.siglip_loss(a, b, scale, -10.0, backend=platform.backend),
            ff.sup_con_loss(a[:0], nobody.to(platform.device), scale, backend=platform.backend),
        ]
        grads = torch.autograd.grad(sum(losses), (a, b, scale))
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
@pytest.mark.parametrize("normalize", [True, False])
def test_nan_is_not_lost(normalize: bool, platform: Platform) -> None:
    a, b = (torch.randn(20, 8, device=platform.device, dtype=platform.dtype) for _ in range(2))
    a[3, 2] = float("nan")
    options: dict[str, Any] = {"normalize": normalize, "backend": platform.backend}
    with platform.active():
        losses = [
            ff.clip_loss(a, b, 10.0, **options),
            ff.siglip_loss(a, b, 10.0, -10.0, **options),
            ff.nt_xent_loss(a, b, 10.0, **options),
        ]
    assert all(loss.isnan() for loss in losses)


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
def test_ids_of_any_integer_dtype_and_size(platform: Platform) -> None:
    a, b = (torch.randn(20, 8).to(platform.device, platform.dtype) for _ in range(2))
    ids = (torch.arange(20) % 7).to(platform.device)
    with platform.active():
        losses = [ff.clip_loss(a, b, 10.0, ids=ids.to(t), backend=platform.backend) for t in (torch.int64, torch.uint8)]
        losses.append(ff.clip_loss(a, b, 10.0, ids=ids * 2**40 - 2**62, backend=platform.backend))
    assert losses[0] == losses[1] == losses[2]


def test_scalars_may_be_numbers_or_tensors_of_one_element() -> None:
    a, b = torch.randn(9, 8), torch.randn(9, 8)
    expected = ff.siglip_loss(a, b, 8.0, -2.0)
    for make in (torch.tensor, lambda x: torch.tensor([x]), lambda x: torch.tensor(x, dtype=torch.bfloat16)):
        scale = make(8.0).requires_grad_()
        loss = ff.siglip_loss(a, b, scale, make(-2.0))
        assert torch.equal(loss, expected)
        (grad,) = torch.autograd.grad(loss, scale)
        assert grad.shape == scale.shape
        assert grad.dtype == scale.dtype


@pytest.mark.parametrize("locked", ["a", "b", "both"])
@pytest.mark.parametrize("loss", [ff.clip_loss, lambda a, b, s: ff.siglip_loss(a, b, s, -s)])
def test_only_the_gradients_that_are_wanted(loss: Any, locked: str) -> None:
    inputs = {"a": torch.randn(40, 16), "b": torch.randn(40, 16), "s": torch.tensor(10.0)}
    full = {what: t.clone().requires_grad_() for what, t in inputs.items()}
    loss(*full.values()).backward()
    some = {what: t.clone().requires_grad_(what not in (locked, *(("a", "b") if locked == "both" else ())))
            for what, t in inputs.items()}  # fmt: skip
    loss(*some.values()).backward()
    for what, t in some.items():
        assert t.grad is None if not t.requires_grad else torch.equal(t.grad, full[what].grad)
