"""The calls whose kernels the compile gate compiles: each kernel, each tile of its rules, each option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from cases import AttentionCase, make_inputs
from cases_contrastive import ContrastiveCase
from cases_contrastive import make_inputs as make_pairs
from test_attention import run_fused
from test_contrastive import run as run_loss

import fastfuse as ff
from bench.rules import dim_of, family, served

Call = Callable[[], object]


def lengths(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.linspace(1, case.Sk, case.B).int())


def causal(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.causal(case.Sq, case.Sk)


def attention_of(dim: int) -> list[AttentionCase]:
    """The least and the most that the kernels can be asked for at a head dim, with many queries and with few."""
    plain = AttentionCase("plain", B=1, Sq=256, Sk=256, D=dim)
    most = {"span": causal, "sink": True, "gate": "head", "softcap": 9.0, "dropout_p": 0.1, "bias": "1 H Sq Sk"}
    return [
        plain,
        AttentionCase("everything", B=2, H=4, Hk=2, Sq=131, Sk=197, D=dim - 8 if dim > 16 else dim, Dv=dim, **most),
        AttentionCase("decode", B=1, Sq=1, Sk=2048, D=dim, map="mean"),
    ]


OPTIONS = [
    AttentionCase("lengths", B=2, Sq=256, Sk=256, span=lengths, map="keys"),
    AttentionCase("causal", B=1, Sq=256, Sk=256, span=causal, map="full"),
    AttentionCase("bias", B=2, Sq=256, Sk=256, bias="1 H Sq Sk"),
    AttentionCase("bias of keys", B=2, Sq=256, Sk=256, bias="B 1 1 Sk"),
    AttentionCase("bias of queries", B=2, Sq=256, Sk=256, bias="B H Sq 1"),
    AttentionCase("bool bias", B=2, Sq=256, Sk=256, bias="B 1 Sq Sk", bias_kind="bool", map="mean"),
    AttentionCase("float32 bias", B=2, Sq=256, Sk=256, bias="1 H Sq Sk", bias_kind="float32"),
    AttentionCase("sink", B=1, Sq=256, Sk=256, sink=True),
    AttentionCase("softcap", B=1, Sq=256, Sk=256, softcap=9.0, map="mean"),
    AttentionCase("dropout", B=1, Sq=256, Sk=256, dropout_p=0.1),
    AttentionCase("4 heads share", B=1, H=4, Hk=1, Sq=256, Sk=256, map="mean"),
    AttentionCase("beams share", B=2, H=4, Hk=1, Sq=5, Sk=1024, span=lengths, sink=True),
]


def pairs_of(dim: int) -> list[ContrastiveCase]:
    return [
        ContrastiveCase("clip", "clip_loss", N=256, D=dim),
        ContrastiveCase("clip, ids, odd", "clip_loss", N=131, M=131, D=dim - 3, ids=9, label_smoothing=0.1),
        ContrastiveCase("siglip", "siglip_loss", N=256, D=dim),
        ContrastiveCase("nt_xent", "nt_xent_loss", N=128, D=dim),
    ]


LOSSES = [
    ContrastiveCase("siglip, ids", "siglip_loss", N=131, ids=9),
    ContrastiveCase("info_nce", "info_nce_loss", N=64, M=197, ids=9, positives=True),
    ContrastiveCase("sup_con", "sup_con_loss", N=197, ids=9),
    ContrastiveCase("clip, raw", "clip_loss", N=256, normalize=False),
]


def calls(arch: int, dtype: torch.dtype, quick: bool) -> Iterator[Call]:
    """quick: the head dim 64, or the one nearest to it. Options alone are for bfloat16, and not for quick."""
    for dim in _dims("attention", arch, dtype, quick):
        for case in attention_of(dim):
            yield partial(attention, case, dtype)
    for dim in _dims("pair", arch, dtype, quick):
        for loss in pairs_of(dim):
            yield partial(contrastive, loss, dtype)
        yield partial(retrieval, dim, dtype)
    if dtype == torch.bfloat16 and not quick:
        for case in OPTIONS:
            yield partial(attention, case, dtype)
        for loss in LOSSES:
            yield partial(contrastive, loss, dtype)


def hardest(kernel: str, dim: int, dtype: torch.dtype) -> list[Call]:
    """Calls that need the least and the most of a kernel of these rules, the most first."""
    if family(kernel) == "attention":
        return [partial(attention, case, dtype) for case in reversed(attention_of(dim))]
    losses = [partial(contrastive, loss, dtype) for loss in pairs_of(dim)[1:]]
    return [*losses, partial(retrieval, dim, dtype)]


def attention(case: AttentionCase, dtype: torch.dtype) -> None:
    run_fused(case, make_inputs(case, dtype), "triton")


def contrastive(case: ContrastiveCase, dtype: torch.dtype) -> None:
    run_loss(ff, case, make_pairs(case, dtype), backend="triton")


def retrieval(dim: int, dtype: torch.dtype) -> None:
    queries, keys = torch.randn(100, dim).to(dtype), torch.randn(300, dim).to(dtype)
    for k in (10, 300):
        ff.similarity_topk(queries, keys, k, backend="triton")
    ff.retrieval_ranks(queries, keys, torch.zeros(100, 2, dtype=torch.int64), backend="triton")


def _dims(wanted: str, arch: int, dtype: torch.dtype, quick: bool) -> list[int]:
    """Dims that reach each rule of a family's kernels."""
    dims = {dim_of(kernel, rule) for kernel, rule in served(arch, dtype.itemsize) if family(kernel) == wanted}
    return [min(dims, key=lambda dim: abs(dim - 64))] if quick and dims else sorted(dims)
