"""The attention ops as PyTorch sees them: compile, export, autocast, opcheck, higher derivatives, torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from platforms import USABLE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastfuse as ff

BACKENDS = [name for name in ("reference", "cpu", "triton") if name in USABLE]


def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, bias, sink, gate of a small problem with every option."""
    shapes = [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 16), (1, 4, 1, 5), (4,), ()]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def call(*args: Tensor, backend: str = "auto", **options: Any) -> tuple[Tensor, Tensor]:
    q, k, v, bias, sink, gate = args
    span = ff.KeySpan.causal(3, 5) & ff.KeySpan.lengths(torch.tensor([4, 2]))
    options = {"softcap": 5.0, "dropout_p": 0.2, "seed": 7} | options
    got = ff.cross_attention(
        q, k, v, span=span, bias=bias, sink=sink, gate=gate, return_lse=True, backend=backend, **options
    )
    assert isinstance(got, ff.AttentionOutput)
    assert got.lse is not None
    return got.out, got.lse


def test_gradcheck_and_gradgradcheck() -> None:
    shapes = [(1, 2, 2, 2), (1, 1, 3, 2), (1, 1, 3, 3), (1, 2, 1, 3), (2,), ()]
    x = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def small(*x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, bias, sink, gate = x
        options = {"span": ff.KeySpan.causal(2, 3), "softcap": 5.0, "dropout_p": 0.2, "seed": 7}
        got = ff.cross_attention(q, k, v, bias=bias, sink=sink, gate=gate, return_lse=True, **options)
        return got.out, got.lse

    assert gradcheck(small, x, check_forward_ad=True)
    assert gradgradcheck(small, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_backward_of_every_backend(backend: str) -> None:
    def second(backend: str) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        x = leaves()
        grads = torch.autograd.grad(call(*x, backend=backend)[0].sin().sum(), x, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), x)

    for ours, truth in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    q, k, v, bias, sink, gate = leaves()
    lo, hi = (torch.tensor([[a, 1, 2], [0, 1, a]], dtype=torch.int32) + b for a, b in ((0, 0), (1, 2)))
    gate = gate.detach().expand(4).contiguous().requires_grad_()
    options = (0.3, 5.0, 0.2, torch.tensor(7))
    ops = torch.ops.fastfuse
    torch.library.opcheck(ops.attention_fwd.default, (q, k, v, lo, hi, bias, sink, gate, *options, backend))
    out, lse_pair = ops.attention_fwd(q, k, v, lo, hi, bias, sink, gate, *options, backend)
    saved = [t.detach() for t in (q, k, v, lo, hi, bias, sink, gate, out, lse_pair)]
    needs = [True, True, False, True, True, True]
    dout, dlse = torch.randn_like(saved[-2]), torch.randn_like(saved[-1][0])
    torch.library.opcheck(ops.attention_bwd.default, (dout, dlse, *saved, *options, needs, backend))
    for mode in ("full", "mean", "keys"):
        torch.library.opcheck(ops.attention_map.default, (*saved[:2], *saved[3:6], saved[-1], 0.3, 5.0, mode, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    def step(*args: Tensor) -> tuple[Tensor, ...]:
        out, lse = call(*args, backend=backend)
        received = ff.cross_attention(*args[:3], return_map="keys", backend=backend)
        assert isinstance(received, ff.AttentionOutput)
        assert received.map is not None
        narrow = ff.cross_attention(*(t[..., :5] for t in args[:3]), backend=backend)  # 5: padded for some backends
        assert isinstance(narrow, Tensor)
        return out.sin().sum() + lse.sum() + narrow.sum(), received.map

    x = leaves()
    eager, compiled = step(*x), torch.compile(step, fullgraph=True, backend="aot_eager")(*x)
    for ours, truth in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, truth)
    grads = (torch.autograd.grad(loss[0], x) for loss in (compiled, eager))
    for ours, truth in zip(*grads, strict=True):
        torch.testing.assert_close(ours, truth)


def test_exports_with_a_span_as_input() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, span: ff.KeySpan) -> Tensor:
            out = ff.cross_attention(q, k, v, span=span)
            assert isinstance(out, Tensor)
            return out

    q, k, v = (torch.randn(2, 2, 4, 8) for _ in range(3))
    span = ff.KeySpan.causal(4, 4)
    exported = torch.export.export(Model(), (q, k, v, span)).module()
    other = ff.KeySpan.window(4, 4, 1, 0)
    torch.testing.assert_close(exported(q, k, v, other), ff.cross_attention(q, k, v, span=other))


def test_autocast_casts_the_features() -> None:
    x = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = call(*x)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    grads = torch.autograd.grad(out.float().sum(), x)
    assert [g.dtype for g in grads] == [torch.float32] * len(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func(backend: str) -> None:
    x = [t.detach() for t in leaves()]
    rest = x[1:]
    f = lambda q: call(q, *rest, backend=backend)[0]  # noqa: E731
    tangent = torch.randn_like(x[0])
    value, ours = torch.func.jvp(f, (x[0],), (tangent,))
    torch.testing.assert_close(value, f(x[0]))
    weight = torch.randn_like(value)
    gradient = torch.func.grad(lambda q: (f(q) * weight).sum())(x[0])
    torch.testing.assert_close((ours * weight).sum(), (gradient * tangent).sum())
    pulled = torch.func.vmap(lambda scaled: f(x[0] * scaled))(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(pulled[1], f(x[0] * 0.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_some_inputs_or_outputs_only(backend: str) -> None:
    def gradients(x: list[Tensor], wanted: list[Tensor], outputs: slice = slice(2)) -> tuple[Tensor, ...]:
        sums = [t.sum() for t in call(*x, backend=backend)[outputs]]
        return torch.autograd.grad(sums, wanted, allow_unused=True, materialize_grads=True)

    x = leaves()
    whole = gradients(x, x)
    for i, truth in enumerate(whole):
        constants = [t if j == i else t.detach() for j, t in enumerate(x)]
        torch.testing.assert_close(gradients(x, [x[i]])[0], truth)
        torch.testing.assert_close(gradients(constants, [x[i]])[0], truth)
    of_out, of_lse = gradients(x, x, slice(1)), gradients(x, x, slice(1, 2))
    for a, b, truth in zip(of_out, of_lse, whole, strict=True):
        torch.testing.assert_close(a + b, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_under_a_transform_or_mode_that_the_forward_did_not_see(backend: str) -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(op)
            return op(*args, **(kwargs or {}))

    x, seen = leaves(), list[Any]()
    out, _ = call(*x, backend=backend)
    douts = torch.randn(3, *out.shape)

    def pull(dout: Tensor) -> Tensor:
        return torch.autograd.grad(out, x[0], dout, retain_graph=True)[0]

    apart = torch.stack([pull(dout) for dout in douts])
    torch.testing.assert_close(torch.func.vmap(pull)(douts), apart)
    with Watch():
        torch.testing.assert_close(pull(douts[0]), apart[0])
    assert torch.ops.fastfuse.attention_bwd.default in seen


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_that_outlived_its_transform(backend: str) -> None:
    x, left = [t.detach() for t in leaves()], list[Tensor]()

    def leak(q: Tensor) -> Tensor:
        left.append(q * 1)
        return q.sum()

    torch.func.grad(leak)(x[0])
    torch.testing.assert_close(call(left[0], *x[1:], backend=backend)[0], call(*x, backend=backend)[0])


def test_dropout_seed_is_drawn_from_torchs_generator() -> None:
    q = torch.randn(1, 2, 20, 8)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(ff.cross_attention(q, q, q, dropout_p=0.5))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
