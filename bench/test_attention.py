"""cross_attention against the dense formula, torch's SDPA and FlexAttention: the tests' cases in sizes of use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import eager
import pytest
import torch
from cases import AttentionCase, AttentionInputs, make_inputs
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastfuse as ff
from bench import contest, peers
from bench.contest import Call, Contest

Attend = Callable[..., Tensor]  # of the leaves, by name


def padded(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.linspace(case.Sk // 2, case.Sk, case.B).int())


def causal(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.causal(case.Sq, case.Sk)


def latest_of_4(case: AttentionCase) -> ff.KeySpan:
    index = (torch.arange(case.Sq) * 4 // case.Sq).expand(case.B, -1)
    return ff.KeySpan.latest_media(index, torch.linspace(0, case.Sk, 5).int()[None])


def packed_8(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.packed(*(torch.linspace(0, size, 9).int() for size in (case.Sq, case.Sk)))


FORWARD = [
    AttentionCase("caption over ViT-B/16", 8, 12, Sq=64, Sk=197, D=64),
    AttentionCase("at 384 pixels, padded", 8, 12, Sq=64, Sk=577, D=64, span=padded),
    AttentionCase("pooler, padded", 4, 8, Sq=256, Sk=1024, D=64, span=padded),
    AttentionCase("short captions", 16, 12, Sq=20, Sk=257, D=64),
    AttentionCase("D 128, padded", 2, 8, Sq=512, Sk=2048, D=128, span=padded),
    AttentionCase("causal", 1, 16, Sq=1024, Sk=1024, D=64, span=causal),
    AttentionCase("latest of 4 pictures", 4, 8, Sq=256, Sk=1024, D=64, span=latest_of_4),
    AttentionCase("8 packed documents", 1, 12, Sq=512, Sk=2048, D=64, span=packed_8),
    AttentionCase("4 K/V heads of 16", 4, 16, Hk=4, Sq=128, Sk=577, D=64),
]
TRAINING = [FORWARD[i] for i in (0, 1, 2, 5, 6)]
LEARNED = [
    AttentionCase("bias a head", 8, 12, Sq=64, Sk=197, D=64, bias="1 H Sq Sk"),
    AttentionCase("sink and gate", 4, 8, Sq=256, Sk=577, D=64, sink=True, gate="head"),
]
DECODE = [
    AttentionCase("32 texts", 32, 12, Sq=1, Sk=577, D=64),
    AttentionCase("8 texts, D 128", 8, 16, Sq=1, Sk=1024, D=128),
]
BEAMS = [AttentionCase("5 beams", 8, 12, Sq=5, Sk=577, D=64), AttentionCase("8 beams", 4, 16, Sq=8, Sk=1024, D=64)]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@both_dtypes
@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_forward(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype)
    others = dense_peers(case, inputs)
    if inputs.span is not None and dtype == torch.float32:  # it compiles for seconds
        others["flex"] = peers.flex_attention(inputs.span, inputs.leaves["q"], inputs.leaves["k"])
    contest.run(attention_contest("attention fwd", case, inputs, others, forward), benchmark)


@both_dtypes
@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_training(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype)
    contest.run(attention_contest("attention fwd+bwd", case, inputs, dense_peers(case, inputs), training), benchmark)


@pytest.mark.parametrize("case", LEARNED, ids=str)
def test_learned(case: AttentionCase, benchmark: BenchmarkFixture) -> None:
    """Options with gradients that torch has in the dense formula only."""
    inputs = make_inputs(case, torch.float32)
    others = {"eager": partial(peers.eager_attention, visible(case, inputs))}
    contest.run(attention_contest("attention options fwd+bwd", case, inputs, others, training), benchmark)


@both_dtypes
@pytest.mark.parametrize("case", DECODE, ids=str)
def test_decode(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype)
    contest.run(attention_contest("decode", case, inputs, dense_peers(case, inputs), forward), benchmark)


@both_dtypes
@pytest.mark.parametrize("case", BEAMS, ids=str)
def test_beams(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    """Beams stand along Sq against one K and V; the peers keep a copy of K and V a beam, as decoders do."""
    inputs = make_inputs(case, dtype)
    copies = [inputs.leaves[name].detach().repeat_interleave(case.Sq, 0) for name in "kv"]

    def over_copies(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = q.transpose(1, 2).reshape(case.B * case.Sq, case.H, 1, case.D)
        return attend(rows, *copies).view(case.B, case.Sq, case.H, case.D).transpose(1, 2)

    others = {name: partial(over_copies, attend) for name, attend in dense_peers(case, inputs).items()}
    contest.run(attention_contest("beams", case, inputs, others, forward), benchmark)


def visible(case: AttentionCase, inputs: AttentionInputs) -> Tensor | None:
    """The span as a dense mask, broadcastable to (B, H, Sq, Sk)."""
    return None if inputs.span is None else inputs.span.to_dense(case.Sk)[:, None]


def formula(case: AttentionCase, inputs: AttentionInputs) -> Attend:
    """The tests' formula, with every option, in the dtype of q."""
    mask = visible(case, inputs)
    return lambda q, **leaves: eager.attention(q, visible=mask, dtype=q.dtype, **leaves).out


def dense_peers(case: AttentionCase, inputs: AttentionInputs) -> dict[str, Attend]:
    mask = visible(case, inputs)
    return {"eager": partial(peers.eager_attention, mask), "sdpa": partial(peers.sdpa, mask)}


def forward(attend: Attend, leaves: dict[str, Tensor], dout: Tensor) -> tuple[Tensor]:
    with torch.no_grad():
        return (attend(**{name: leaf.detach() for name, leaf in leaves.items()}),)


def training(attend: Attend, leaves: dict[str, Tensor], dout: Tensor) -> tuple[Tensor, ...]:
    out = attend(**leaves)
    return out.detach(), *torch.autograd.grad(out, list(leaves.values()), dout)


def attention_contest(
    group: str,
    case: AttentionCase,
    inputs: AttentionInputs,
    others: dict[str, Attend],
    do: Callable[[Attend, dict[str, Tensor], Tensor], tuple[Tensor, ...]],
) -> Contest:
    """The contest of one case; all start from the same contiguous inputs."""
    leaves = {name: leaf.detach().contiguous().requires_grad_() for name, leaf in inputs.leaves.items()}
    dtype, span = leaves["q"].dtype, inputs.span
    backends = contest.our_backends("attention_fwd", dtype, (case.D, case.D))
    ours = {f"fastfuse {name}": partial(ff.cross_attention, span=span, backend=name) for name in backends}
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in inputs.leaves.items()}
    seen = 1.0 if span is None else span.to_dense(case.Sk).float().mean().item()
    flops = 4 * case.B * case.H * case.Sq * case.Sk * case.D * seen
    moved = sum(leaf.nbytes for leaf in leaves.values()) + inputs.dout.nbytes
    dout = inputs.dout.contiguous()
    calls: dict[str, Call] = {name: partial(do, attend, leaves, dout) for name, attend in (ours | others).items()}
    return Contest(
        group=group,
        label=f"{case.name} ({case.B} x {case.H} x {case.Sq} x {case.Sk}, D {case.D})",
        dtype=dtype,
        flops=flops * (3.5 if do is training else 1),  # backward recomputes the scores: 5 products to forward's 2
        bytes=moved * (2 if do is training else 1),
        contenders=calls,
        truth=partial(do, formula(case, inputs), exact, dout.double()),
        eager=partial(do, formula(case, inputs), leaves, dout),
    )
