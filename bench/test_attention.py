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
from bench import contest, installed_peers, machine, peers
from bench.contest import Call, Contest
from bench.sizes import causal, sizes

Attend = Callable[..., Tensor]  # of the leaves, by name


SIZES = sizes()
ON_GPU = machine.device() == "cuda"
each_dtype = pytest.mark.parametrize("dtype", SIZES.dtypes, ids=str)


@each_dtype
@pytest.mark.parametrize("case", SIZES.forward, ids=str)
def test_forward(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype, machine.torch_device())
    others = dense_peers(case, inputs)
    if ON_GPU or (machine.device() == "cpu" and inputs.span is not None and dtype == torch.float32):  # it compiles long
        others["flex"] = flex(inputs)
    contest.run(attention_contest("attention fwd", case, inputs, others, forward), benchmark)


@each_dtype
@pytest.mark.parametrize("case", SIZES.training, ids=str)
def test_training(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype, machine.torch_device())
    others = dense_peers(case, inputs) | ({"flex": flex(inputs)} if ON_GPU else {})
    contest.run(attention_contest("attention fwd+bwd", case, inputs, others, training), benchmark)


@pytest.mark.parametrize("case", SIZES.learned, ids=str)
def test_learned(case: AttentionCase, benchmark: BenchmarkFixture) -> None:
    """Options with gradients that torch has in the dense formula only, or in FlexAttention."""
    inputs = make_inputs(case, SIZES.learned_dtype, machine.torch_device())
    dense = partial(peers.eager_attention, visible(case, inputs))
    others: dict[str, Attend] = {"eager": dense}
    if ON_GPU:
        others["compiled"] = torch.compile(dense)
        if inputs.leaves.keys() == {"q", "k", "v", "bias"}:
            others |= sdpa_on_gpu(visible(case, inputs)) | {"flex": flex(inputs)}
    contest.run(attention_contest("attention options fwd+bwd", case, inputs, others, training), benchmark)


@each_dtype
@pytest.mark.parametrize("case", SIZES.decode, ids=str)
def test_decode(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(case, dtype, machine.torch_device())
    contest.run(attention_contest("decode", case, inputs, dense_peers(case, inputs), forward), benchmark)


@each_dtype
@pytest.mark.parametrize("case", SIZES.beams, ids=str)
def test_beams(case: AttentionCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    """Beams stand along Sq against one K and V; the peers keep a copy of K and V a beam, as decoders do."""
    inputs = make_inputs(case, dtype, machine.torch_device())
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
    """Who takes a dense mask, and on a GPU who takes none."""
    mask, is_causal = visible(case, inputs), case.span is causal
    eager_and = {"eager": partial(peers.eager_attention, mask)}
    masks = (None, True) if is_causal and case.Sq == case.Sk else (mask, False)
    if not ON_GPU:
        return eager_and | {"sdpa": partial(peers.sdpa, *masks)}
    installed = installed_peers.attention(is_causal) if mask is None or is_causal else {}
    return eager_and | sdpa_on_gpu(*masks) | installed


def sdpa_on_gpu(mask: Tensor | None, is_causal: bool = False) -> dict[str, Attend]:
    return {name: partial(attend, mask, is_causal) for name, attend in peers.SDPA_ON_GPU.items()}


def flex(inputs: AttentionInputs) -> Attend:
    return peers.flex_attention(inputs.span, inputs.leaves["q"], inputs.leaves["k"])


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
