"""The CUDA kernels of the contrastive losses, executed on the host: cases against float64, and mistakes to be found."""

from __future__ import annotations

from collections.abc import Callable

import eager_contrastive
import pytest
import torch
from budget import assert_within_budget
from cases_contrastive import CONTRASTIVE_CASES, ContrastiveCase, call, make_inputs
from emulation import Mutation, assert_found, emulated
from platforms import name
from test_contrastive import check_case
from torch import Tensor

import fastfuse as ff
from fastfuse.ops.pair import pair_softmax
from fastfuse.pairing import Pairing

DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CONTRASTIVE_CASES, ids=name)
def test_matches_float64(case: ContrastiveCase, dtype: torch.dtype) -> None:
    with emulated(seed=len(case.name)):
        check_case(case, "cuda", dtype)


# Tiles enough that every ring comes round, blocks part a row of tiles and gradients come in chunks; some are unmarked.
CROWDED = [
    ContrastiveCase("crowded_smooth", "clip_loss", N=500, M=700, D=130, label_smoothing=0.1),
    ContrastiveCase("crowded_siglip", "siglip_loss", N=300, M=600, D=200),
    ContrastiveCase("crowded_nt_xent", "nt_xent_loss", N=512, D=40),
    ContrastiveCase("crowded_clip", "clip_loss", N=300, M=600, D=70),
    ContrastiveCase("crowded_far_logits", "clip_loss", N=140, M=800, scale=100.0),
    ContrastiveCase("crowded_nce", "info_nce_loss", N=140, M=800),
]


@pytest.mark.parametrize("case", CROWDED, ids=name)
def test_any_order_of_threads_and_copies_gives_the_same_bits(case: ContrastiveCase) -> None:
    results = []
    for seed in range(4):
        with emulated(seed=seed):
            results.append(check_case(case, "cuda", torch.bfloat16))
    for other in results[1:]:
        for what, value in results[0].items():
            assert torch.equal(value, other[what]), what


@pytest.mark.parametrize("loss", ["clip_loss", "info_nce_loss", "siglip_loss"])
def test_blocks_that_share_columns_and_rows(loss: str) -> None:
    """Two segments of columns, and blocks that part a row of tiles of each."""
    smoothing = 0.1 if loss == "clip_loss" else 0.0
    with emulated(multiprocessors=4):
        check_case(
            ContrastiveCase("segments", loss, N=300, M=1400, D=70, label_smoothing=smoothing), "cuda", torch.bfloat16
        )


def check_own_pairs() -> None:
    """Of a symmetric problem in which a row counts with itself, as no public loss has it."""
    ids, smoothing = torch.arange(300) % 41, 0.1
    a, scale = torch.randn(300, 40).bfloat16().requires_grad_(), torch.tensor(9.0, requires_grad=True)

    def fused(a: Tensor, scale: Tensor, backend: str) -> Tensor:
        return pair_softmax(a, None, scale, Pairing(ids), mode="symmetric", label_smoothing=smoothing, backend=backend)

    def eager(a: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        x = eager_contrastive.logits(a, a, scale, True, dtype)
        return eager_contrastive.cross_entropy(x, ids[:, None] == ids, smoothing).mean()

    losses = fused(a, scale, "cuda"), eager(a, scale, torch.float64), eager(a, scale, torch.bfloat16)
    assert_within_budget("loss", *losses, torch.bfloat16)
    for what, grads in zip(
        ("da", "dscale"), zip(*(torch.autograd.grad(loss, (a, scale)) for loss in losses), strict=True), strict=True
    ):
        assert_within_budget(what, *grads, torch.bfloat16)


def test_a_row_may_be_a_pair_with_itself() -> None:
    with emulated():
        check_own_pairs()


LOSSES = {"clip_loss": ("a", "b", "scale"), "siglip_loss": ("a", "b", "bias"), "sup_con_loss": ("a", "scale")}


@pytest.mark.parametrize(("loss", "wanted"), [(loss, leaf) for loss, leaves in LOSSES.items() for leaf in leaves])
def test_only_the_gradients_that_are_wanted(loss: str, wanted: str) -> None:
    inputs = make_inputs(ContrastiveCase("wanted", loss, N=150, D=40, ids=20), torch.bfloat16)
    with emulated():
        full = torch.autograd.grad(call(getattr(ff, loss), inputs, backend="cuda"), list(inputs.leaves.values()))
        truth = dict(zip(inputs.leaves, full, strict=True))[wanted]
        for what, leaf in inputs.leaves.items():
            leaf.requires_grad_(what == wanted)
        some = call(getattr(ff, loss), inputs, backend="cuda")
        assert torch.equal(torch.autograd.grad(some, [inputs.leaves[wanted]])[0], truth)


def test_features_of_any_size() -> None:
    """Powers of two change nothing but the gradients, by as much."""
    a, b = torch.randn(150, 40).bfloat16(), torch.randn(150, 40).bfloat16()
    results = []
    with emulated():
        for up, down in ((2.0**90, 2.0**-35), (1.0, 1.0)):
            leaves = (a * up).requires_grad_(), (b * down).requires_grad_(), torch.tensor(9.0, requires_grad=True)
            loss = ff.clip_loss(*leaves, backend="cuda")
            da, db, dscale = torch.autograd.grad(loss, leaves)
            results.append((loss, da * up, db * down, dscale))
    for large, plain in zip(*results, strict=True):
        assert torch.equal(large, plain)


def test_ids_of_any_size() -> None:
    a, b, ids = torch.randn(20, 8).half(), torch.randn(20, 8).half(), torch.arange(20) % 7
    with emulated():
        losses = [ff.clip_loss(a, b, 10.0, ids=labels, backend="cuda") for labels in (ids, ids * 2**40 - 2**62)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0)])
def test_empty_sides(sizes: tuple[int, int]) -> None:
    a, b = (torch.randn(n, 16, dtype=torch.float16, requires_grad=True) for n in sizes)
    scale = torch.tensor(10.0, requires_grad=True)
    with emulated():
        losses = [
            ff.clip_loss(a, b, scale, label_smoothing=0.1, backend="cuda"),
            ff.siglip_loss(a, b, scale, -10.0, backend="cuda"),
            ff.sup_con_loss(a[:0], torch.zeros(0, dtype=torch.int64), scale, backend="cuda"),
        ]
        grads = torch.autograd.grad(sum(losses), (a, b, scale))
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    assert all((grad == 0).all() for grad in grads)


def check_crowded(index: int) -> Callable[[], object]:
    return lambda: check_case(CROWDED[index], "cuda", torch.bfloat16)


def _sweep(name: str, old: str, new: str = "", file: str = "pair_sweep.cuh") -> tuple[Mutation, Callable[[], object]]:
    """A mistake in what all sweeps share, or in the forward one."""
    return Mutation(f"pair_lse_{name}", "pair_lse.cu", file, old, new), check_crowded(0)


def _own(name: str, kernel: str, file: str, old: str, new: str = "") -> tuple[Mutation, Callable[[], object]]:
    return Mutation(f"pair_own_{name}", kernel, file, old, new), check_own_pairs


_EMPTY = "mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);"
_FULL = "mbarrier_wait(shared.full(ring.stage), ring.parity);"
_FREE_COLUMNS = "if (who.lane == 0) mbarrier_arrive(shared.columns_empty(columns.stage));"
_BARRIER = "named_barrier_sync(C::kExchangeBarrier + who.warpgroup, 128);\n"
_LOOKED = "    }\n    if (kCols) merge_columns(stage, kPositives"
MUTATIONS = [
    _sweep("features_overwritten", _EMPTY),
    _sweep("features_not_awaited", _FULL),
    _sweep("bytes_expected", "C::kABytes + C::kBBytes);", "C::kABytes);"),
    _sweep("products_not_awaited", "wgmma_wait<0>();"),
    _sweep("released_early", "      wgmma_wait<1>();\n"),
    _sweep("released_twice", "  release(before);\n}", "  release(before);\n  release(before);\n}"),
    _sweep("no_wgmma_fence", "    wgmma_fence();\n"),
    _sweep("columns_not_awaited", "mbarrier_wait(shared.columns_full(columns.stage), columns.parity);"),
    _sweep("columns_not_released", _FREE_COLUMNS),
    _sweep("columns_of_two_warps", "columns_full(stage), 3 * 32)", "columns_full(stage), 2 * 32)"),
    _sweep("no_lead", "if (step == announced) ", "if (step == announced + 64) "),
    _sweep("no_init_fence", "    mbarrier_init_fence();\n"),
    _sweep("no_block_sync", "  block_sync();\n"),
    _sweep("exchange_not_awaited", f"    {_BARRIER}#pragma", "#pragma", "pair_lse.cuh"),
    _sweep("exchange_overwritten", f"    {_BARRIER}  }}", "  }", "pair_lse.cuh"),
    _sweep("no_turn", f"      turn(x);\n{_LOOKED}", _LOOKED, "pair_lse.cuh"),
    _sweep("stale_columns", "row == tiles.row_begin || tiles.position", "row == 0 && tiles.position", "pair_tiles.cuh"),
    _sweep("place_not_told", "if (lane == 0) {", "if (false) {"),
    _sweep("not_turned", "last - (tiles.turn(row) % tiles.length(row) <<", "last - (0 <<", "pair_tiles.cuh"),
    _sweep("parts_met", "row * segments() + block;", "row * segments();", "pair_tiles.cuh"),
    _sweep("one_part", "block != last", "last < 0", "pair_statistics.cuh"),
    _own("forward", "pair_lse.cu", "pair_lse.cuh", "hide_own(stage, x);", ";"),
    _own("backward", "pair_softmax_bwd.cu", "pair_softmax_bwd.cuh", "kCols && !bounds.own(at)", "kCols"),
    _own("chunk", "pair_softmax_bwd.cu", "pair_chunk.cuh", "odd ? even_word : odd_word", "even_word"),
    _own("diagonal", "pair_softmax_bwd.cu", "pair_logits.cuh", ">= diagonal", "> diagonal"),
]  # fmt: skip


@pytest.mark.parametrize(("mutation", "check"), MUTATIONS, ids=[mutation.name for mutation, _ in MUTATIONS])
def test_a_mistake_is_found(mutation: Mutation, check: Callable[[], object]) -> None:
    assert_found(mutation, check)
