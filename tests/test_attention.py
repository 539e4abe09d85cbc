"""Every attention case on every backend against float64: outputs and all gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import eager
import pytest
import torch
from budget import assert_within_budget
from cases import ATTENTION_CASES, SEED, AttentionCase, AttentionInputs, make_inputs
from platforms import EVERYWHERE, PAIRS, PLATFORMS, Platform, common_dtype, name
from torch import Tensor

import fastfuse as ff
from fastfuse.backends import triton

Results = dict[str, Tensor]


def _gradients(loss_parts: list[tuple[Tensor, Tensor]], leaves: dict[str, Tensor]) -> Results:
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    total = sum(
        (torch.where(torch.isfinite(out), out, 0.0).double() * weight.double()).sum() for out, weight in loss_parts
    )
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, list(wanted.values()))
    return {f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}


def run_fused(case: AttentionCase, inputs: AttentionInputs, backend: str) -> Results:
    leaves = inputs.leaves
    got = ff.cross_attention(
        leaves["q"], leaves["k"], leaves["v"], span=inputs.span,
        bias=leaves.get("bias"), sink=leaves.get("sink"), gate=leaves.get("gate"),
        seed=SEED, return_lse=True, return_map=case.map, backend=backend, **inputs.options,
    )  # fmt: skip
    assert isinstance(got, ff.AttentionOutput)
    assert got.lse is not None
    results = {"out": got.out, "lse": got.lse}
    if got.map is not None:
        results["map"] = got.map
    return results | _gradients([(got.out, inputs.dout), (got.lse, inputs.dlse)], leaves)


def run_eager(case: AttentionCase, inputs: AttentionInputs, dtype: torch.dtype) -> Results:
    leaves, options = inputs.leaves, inputs.options
    q, k = leaves["q"], leaves["k"]
    visible = None if inputs.span is None else inputs.span.to_dense(case.Sk)[:, None]
    keep = None
    if case.dropout_p:
        keep = ff.reference.dropout_mask(SEED, (*q.shape[:3], k.shape[2]), case.dropout_p).to(q.device)
    got = eager.attention(
        q, k, leaves["v"], visible, leaves.get("bias"), leaves.get("sink"), leaves.get("gate"),
        keep=keep, dtype=dtype, **options,
    )  # fmt: skip
    maps = {"full": lambda w: w, "mean": lambda w: w.mean(1), "keys": lambda w: w.mean(1).sum(1)}
    results = {"out": got.out, "lse": got.lse}
    if case.map is not None:
        results["map"] = maps[case.map](got.weights)
    return results | _gradients([(got.out, inputs.dout), (got.lse, inputs.dlse)], leaves)


@cache
def expected(case: AttentionCase, dtype: torch.dtype, device: str) -> tuple[AttentionInputs, Results, Results]:
    """The inputs, the float64 truth, and eager PyTorch in the inputs' dtype."""
    inputs = make_inputs(case, dtype, device)
    return inputs, run_eager(case, inputs, torch.float64), run_eager(case, inputs, dtype)


@pytest.mark.parametrize(("platform", "dtype"), EVERYWHERE, ids=name)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=name)
def test_matches_float64(case: AttentionCase, platform: Platform, dtype: torch.dtype) -> None:
    inputs, truth, peer = expected(case, dtype, platform.device)
    with platform.active():
        ours = run_fused(case, inputs, platform.backend)
    assert ours.keys() == truth.keys()
    for what in truth:
        assert_within_budget(what, ours[what], truth[what], peer[what], dtype)
    assert ours["out"].dtype == dtype
    assert ours["lse"].dtype == torch.float32


def of_fewer_heads(case: AttentionCase) -> AttentionCase:
    """Two key heads of one batch: for the interpreter, which runs heads one after the other."""
    Hk = case.Hk or case.H
    return replace(case, B=1, H=min(Hk, 2) * case.H // Hk, Hk=min(Hk, 2))


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.backend == "triton"], ids=name)
@pytest.mark.parametrize("case_name", ["D96_Dv64", "gqa_beams", "bias_heads", "everything"])
def test_cuts_of_float32(case_name: str, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes the cuts of 16 bits; those of float32 make products a few features at a time."""
    monkeypatch.setattr(triton, "_INTERPRETED_ITEMSIZE", 4)
    case = next(case for case in ATTENTION_CASES if case.name == case_name)
    test_matches_float64(of_fewer_heads(case), platform, torch.float32)


@pytest.mark.parametrize(("forward", "backward"), PAIRS, ids=name)
@pytest.mark.parametrize("case_name", ["gqa_2", "everything", "one_visible_key"])
def test_any_forward_pairs_with_any_backward(case_name: str, forward: Platform, backward: Platform) -> None:
    case = next(case for case in ATTENTION_CASES if case.name == case_name)
    inputs, truth, peer = expected(case, common_dtype(forward, backward), forward.device)
    args: dict[str, Any] = {n: t.detach() for n, t in inputs.leaves.items()}
    q, k, v = args["q"], args["k"].contiguous(), args["v"]
    lo, hi = (None, None) if inputs.span is None else (inputs.span.lo, inputs.span.hi)
    sink, gate = (None if t is None else t.float() for t in (args.get("sink"), args.get("gate")))
    extras = (args.get("bias"), sink, gate)
    seed = torch.tensor(SEED, device=q.device) if case.dropout_p else None
    options = (case.scale or case.D**-0.5, case.softcap, case.dropout_p, seed)
    with forward.active():
        out, lse_pair = torch.ops.fastfuse.attention_fwd(q, k, v, lo, hi, *extras, *options, forward.backend)
    needs = [True, True, True, *(extra is not None for extra in extras)]
    dout = inputs.dout.contiguous()
    with backward.active():
        grads = torch.ops.fastfuse.attention_bwd(
            dout, inputs.dlse, q, k, v, lo, hi, *extras, out, lse_pair, *options, needs, backward.backend
        )
    for what, grad, need in zip(("dq", "dk", "dv", "dbias", "dsink", "dgate"), grads, needs, strict=True):
        if need:
            assert_within_budget(what, grad, truth[what].reshape(grad.shape), peer[what].reshape(grad.shape), q.dtype)


@pytest.mark.parametrize(
    ("platform", "dtype"), [(p, d) for p, d in EVERYWHERE if d == p.dtype or p.device == "cuda" or p.isa], ids=name
)  # in one dtype where nothing runs side by side
def test_gradients_are_deterministic(platform: Platform, dtype: torch.dtype) -> None:
    case = next(case for case in ATTENTION_CASES if case.name == "everything")
    interpreted = platform.backend == "triton" and platform.device == "cpu"
    inputs = make_inputs(of_fewer_heads(case) if interpreted else case, dtype, platform.device)
    with platform.active():
        first, second = (run_fused(case, inputs, platform.backend) for _ in range(2))
    for what in first:
        assert torch.equal(first[what], second[what]), what


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
@pytest.mark.parametrize(("B", "Sq", "Sk"), [(2, 0, 5), (2, 3, 0), (0, 3, 5)])
def test_empty_sizes_are_legal(B: int, Sq: int, Sk: int, platform: Platform) -> None:
    options = {"device": platform.device, "dtype": platform.dtype, "requires_grad": True}
    q, k, v = (torch.randn(B, 2, s, 8, **options) for s in (Sq, Sk, Sk))
    got = ff.cross_attention(q, k, v, return_lse=True, return_map="keys", backend=platform.backend)
    assert got.out.shape == (B, 2, Sq, 8)
    assert (got.out == 0).all()
    assert got.map.shape == (B, Sk)
    assert (got.lse == -torch.inf).all()
    for grad in torch.autograd.grad(got.out.sum(), (q, k, v), allow_unused=True, materialize_grads=True):
        assert (grad == 0).all()


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
@pytest.mark.parametrize(("Sq", "softcap"), [(1, 0.0), (9, 0.0), (1, 5.0), (9, 5.0)])
def test_nan_stays_in_its_row(Sq: int, softcap: float, platform: Platform) -> None:
    q, k, v = (torch.randn(1, 2, s, 16, device=platform.device, dtype=platform.dtype) for s in (Sq, 40, 40))
    q[0, 1, Sq - 1, 3] = float("nan")
    with platform.active():
        out = ff.cross_attention(q, k, v, softcap=softcap, backend=platform.backend)
    assert isinstance(out, Tensor)
    expected = torch.zeros(1, 2, Sq, dtype=torch.bool, device=platform.device)
    expected[0, 1, Sq - 1] = True
    assert torch.equal(out.isnan().any(-1), expected)


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
def test_only_the_wanted_gradients(platform: Platform) -> None:
    shapes = [(1, 2, 9, 16), (1, 2, 20, 16), (1, 2, 20, 16), (9, 20)]
    q, k, v, bias = (torch.randn(shape, device=platform.device, dtype=platform.dtype) for shape in shapes)
    for i in range(4):
        leaves = [t.clone().requires_grad_(i == n) for n, t in enumerate((q, k, v, bias))]
        everything = [t.clone().requires_grad_() for t in (q, k, v, bias)]
        with platform.active():
            one, every = (
                torch.autograd.grad(ff.cross_attention(*x[:3], bias=x[3], backend=platform.backend).sin().sum(), x[i])[
                    0
                ]
                for x in (leaves, everything)
            )
        torch.testing.assert_close(one, every)


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.backend == "cpu"], ids=name)
def test_thread_count_leaves_results_within_rounding(platform: Platform) -> None:
    case = next(case for case in ATTENTION_CASES if case.name == "bias_heads")
    inputs, threads = make_inputs(case, platform.dtype, platform.device), torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with platform.active():
                runs.append(run_fused(case, inputs, platform.backend))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for what in run:
            torch.testing.assert_close(run[what], runs[0][what], rtol=1e-5, atol=1e-5)


def test_merge_attention_over_disjoint_keys() -> None:
    q, k, v = (torch.randn(2, 3, s, 16, dtype=torch.float64, requires_grad=True) for s in (9, 30, 30))
    span = ff.KeySpan.lengths(torch.tensor([0, 17]))
    whole = ff.cross_attention(q, k, v, span=span, return_lse=True)
    parts = []
    for lo, hi in ((0, 11), (11, 12), (12, 30)):
        part_span = ff.KeySpan(span.lo - lo, span.hi - lo)
        part = ff.cross_attention(q, k[:, :, lo:hi], v[:, :, lo:hi], span=part_span, return_lse=True)
        parts.append((part.out, part.lse))
    out, lse = ff.merge_attention(parts)
    torch.testing.assert_close(out, whole.out)
    torch.testing.assert_close(lse, whole.lse)
    weight = torch.randn_like(out)
    grads = [torch.autograd.grad((o * weight).sum(), (q, k, v), retain_graph=True) for o in (out, whole.out)]
    for merged, direct in zip(*grads, strict=True):
        torch.testing.assert_close(merged, direct)


@pytest.mark.parametrize("padded", [False, True])
def test_joint_attention_is_attention_over_the_concatenation(padded: bool) -> None:
    sizes = (5, 9, 1)
    qs, ks, vs = ([torch.randn(2, 3, s, 16, dtype=torch.float64) for s in sizes] for _ in range(3))
    spans, bias = None, None
    if padded:
        lengths = [torch.tensor([2, 5]), torch.tensor([9, 0]), torch.tensor([1, 1])]
        spans = [ff.KeySpan.lengths(n) for n in lengths]
        bias = torch.cat([s.to_dense(n) for s, n in zip(spans, sizes, strict=True)], -1)[:, None]
    outs = ff.joint_attention(qs, ks, vs, spans)
    whole = ff.cross_attention(torch.cat(qs, 2), torch.cat(ks, 2), torch.cat(vs, 2), bias=bias)
    torch.testing.assert_close(torch.cat(outs, 2), whole)
    rows = None if spans is None else [spans] * 3
    for one, two in zip(outs, ff.joint_attention(qs, ks, vs, rows), strict=True):
        assert torch.equal(one, two)
