"""The attention case table: every backend's tests run it, and so do the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastfuse as ff

Spans = Callable[["AttentionCase"], "ff.KeySpan"]


@dataclass(frozen=True)
class AttentionCase:
    """One call of cross_attention: sizes and options. A bias is named by its shape: B, H, Sq, Sk or 1 for each."""

    name: str
    B: int = 2
    H: int = 2
    Hk: int = 0  # 0: as H
    Sq: int = 33
    Sk: int = 57
    D: int = 32
    Dv: int = 0  # 0: as D
    span: Spans | None = None
    bias: str | None = None  # "B H Sq Sk" and the like
    bias_kind: str = "float"  # "float" in q's dtype | "float32" | "bool" | "-inf": float with hidden keys
    sink: bool = False
    gate: str | None = None  # "head" | "scalar" | "zero"
    scale: float | None = None
    softcap: float = 0.0
    dropout_p: float = 0.0
    map: str | None = None
    spread: float = 1.0  # standard deviation of q and k

    def __str__(self) -> str:
        return self.name


@dataclass
class AttentionInputs:
    """Leaves that want gradients where they are float, and what stays constant."""

    leaves: dict[str, Tensor]  # "q", "k", "v" and, where the case has them, "bias", "sink", "gate"
    span: ff.KeySpan | None
    dout: Tensor  # (B, H, Sq, Dv)
    dlse: Tensor  # (B, H, Sq)
    options: dict[str, Any]  # scale, softcap, dropout_p


SEED = 1234  # of dropout


def make_inputs(case: AttentionCase, dtype: torch.dtype, device: str = "cpu") -> AttentionInputs:
    """Random inputs of a case, the same for every dtype but for rounding. Neither q, k nor v is contiguous."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    Hk, Dv = case.Hk or case.H, case.Dv or case.D
    leaves = {
        "q": _padded_rows(normal(case.B, case.H, case.Sq, case.D) * case.spread),
        "k": _heads_last(normal(case.B, Hk, case.Sk, case.D) * case.spread),
        "v": _padded_rows(normal(case.B, Hk, case.Sk, Dv)),
    }
    if case.bias is not None:
        sizes = {"B": case.B, "H": case.H, "Sq": case.Sq, "Sk": case.Sk, "1": 1}
        shape = [sizes[s] for s in case.bias.split()]
        values = normal(*shape)
        hidden = torch.rand(*shape, generator=generator) < 0.3
        leaves["bias"] = {"bool": ~hidden, "-inf": values.masked_fill(hidden, -torch.inf)}.get(case.bias_kind, values)
    if case.sink:
        leaves["sink"] = normal(case.H)
    if case.gate is not None:
        leaves["gate"] = {"head": normal(case.H), "scalar": normal(1)[0], "zero": torch.zeros(case.H)}[case.gate]
    for name, leaf in leaves.items():
        if leaf.dtype != torch.bool:
            wanted = torch.float32 if name == "bias" and case.bias_kind == "float32" else dtype
            leaves[name] = _move_keeping_strides(leaf, wanted, device).requires_grad_()
        else:
            leaves[name] = leaf.to(device)
    span = None if case.span is None else case.span(case).to(device)
    dout = normal(case.B, case.H, Dv, case.Sq).to(device, dtype).transpose(2, 3)
    dlse = normal(case.B, case.H, case.Sq).to(device)
    options = {"scale": case.scale, "softcap": case.softcap, "dropout_p": case.dropout_p}
    return AttentionInputs(leaves, span, dout, dlse, options)


def _padded_rows(t: Tensor) -> Tensor:
    """The same values in rows that are followed by NaN, which nobody may read."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 8), float("nan"))
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]


def _heads_last(t: Tensor) -> Tensor:
    """(B, H, S, D) as a view of (B, S, H, D), as a projection leaves it."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def _move_keeping_strides(t: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    if t.dim() < 4 or t.is_contiguous():
        return t.to(device, dtype)
    base = t._base if t._base is not None else t
    return base.to(device, dtype).as_strided(t.shape, t.stride())


def _random_span(case: AttentionCase, inverted: bool = False) -> ff.KeySpan:
    generator = torch.Generator().manual_seed(case.Sq)
    ends = torch.randint(-3, case.Sk + 4, (2, case.B, case.Sq), generator=generator, dtype=torch.int32)
    return ff.KeySpan(*ends) if inverted else ff.KeySpan(*ends.sort(0).values)


def _packed(case: AttentionCase) -> ff.KeySpan:
    third = lambda n: torch.tensor([0, n // 3, n // 3, n // 2, n])  # one document has no query, and no key  # noqa: E731
    return ff.KeySpan.packed(third(case.Sq), third(case.Sk))


def _lengths(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.linspace(case.Sk, 1, case.B).to(torch.int32))


def _some_empty(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.arange(case.B) % 2 * case.Sk)


def _causal(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.causal(case.Sq, case.Sk)


def _window(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.window(case.Sq, case.Sk, 5, 2)


def _prefix(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.prefix(torch.arange(case.B) * 7 + 3, case.Sq, case.Sk)


def _media(case: AttentionCase) -> ff.KeySpan:
    index = (torch.arange(case.Sq) * 4 // max(case.Sq, 1) - 1).expand(case.B, case.Sq)
    return ff.KeySpan.latest_media(index, torch.tensor([[0, case.Sk // 3, case.Sk // 2, case.Sk]]))


def _one_key(case: AttentionCase) -> ff.KeySpan:
    lo = (torch.arange(case.Sq, dtype=torch.int32) * 5 % case.Sk)[None]
    return ff.KeySpan(lo, lo + 1)


ATTENTION_CASES = [
    AttentionCase("plain"),
    AttentionCase("all_sizes_1", B=1, H=1, Sq=1, Sk=1, D=8),
    AttentionCase("one_query", Sq=1, Sk=77),
    AttentionCase("one_key", Sq=45, Sk=1, map="mean"),
    AttentionCase("one_key_dropout", Sq=5, Sk=1, dropout_p=0.25),
    AttentionCase("three_keys", Sq=70, Sk=3, span=_random_span),
    AttentionCase("one_visible_key", Sq=70, Sk=130, span=_one_key, sink=True),
    AttentionCase("tile_edges", Sq=64, Sk=128, D=64),
    AttentionCase("tile_edges_plus_1", Sq=65, Sk=129, D=64),
    AttentionCase("tile_edges_minus_1", Sq=63, Sk=127, D=64),
    AttentionCase("one_tile_at_most", Sq=20, Sk=72),
    AttentionCase("two_tiles_at_least", Sq=20, Sk=73, span=_random_span),
    AttentionCase("class_token", B=1, Sq=20, Sk=257, D=64),
    AttentionCase("long_rows", B=1, Sq=40, Sk=1100, D=16, map="keys"),
    AttentionCase("many_queries", B=1, Sq=700, Sk=33, D=16),
    AttentionCase("D8", D=8, map="full"),
    AttentionCase("D24_Dv40", D=24, Dv=40),
    AttentionCase("D7_Dv13", D=7, Dv=13),
    AttentionCase("D50_Dv60_decode", Sq=1, Sk=90, D=50, Dv=60, map="full"),
    AttentionCase("D61_Dv66", H=4, Hk=2, Sq=35, Sk=80, D=61, Dv=66, span=_lengths),
    AttentionCase("D80", D=80),
    AttentionCase("D96_Dv64", D=96, Dv=64),
    AttentionCase("D128", B=1, D=128, Sq=90, Sk=140),
    AttentionCase("D256_Dv8", B=1, D=256, Dv=8),
    AttentionCase("D8_Dv256", B=1, D=8, Dv=256),
    AttentionCase("gqa_2", H=4, Hk=2, map="mean"),
    AttentionCase("gqa_all", H=6, Hk=1, Sq=3, span=_lengths),
    AttentionCase("gqa_beams", H=4, Hk=1, Sq=5, Sk=197, D=64),
    AttentionCase("decode_long", B=1, H=2, Sq=1, Sk=2000, D=64, span=_lengths),
    AttentionCase("lengths", B=3, span=_lengths, map="keys"),
    AttentionCase("lengths_all_sink", B=3, span=_some_empty, sink=True, map="full"),
    AttentionCase("some_see_nothing", B=3, span=_some_empty, map="mean"),
    AttentionCase("causal", span=_causal),
    AttentionCase("causal_long", B=1, Sq=300, Sk=300, D=16, span=_causal, map="mean"),
    AttentionCase("causal_more_queries", Sq=80, Sk=30, span=_causal, map="keys"),
    AttentionCase("window", Sq=150, Sk=150, span=_window),
    AttentionCase("prefix", Sq=70, Sk=70, span=_prefix),
    AttentionCase("packed", B=1, Sq=131, Sk=257, span=_packed),
    AttentionCase("latest_media", Sq=61, Sk=120, span=_media),
    AttentionCase("random_span", Sq=67, Sk=190, span=_random_span, sink=True, gate="scalar"),
    AttentionCase("mixed_span", span=lambda c: ff.KeySpan(_lengths(c).lo + 3, _causal(c).hi)),
    AttentionCase("inverted_span", Sq=67, Sk=190, span=lambda c: _random_span(c, inverted=True), map="mean"),
    AttentionCase("bias_full", bias="B H Sq Sk"),
    AttentionCase("bias_heads", Sq=70, Sk=130, bias="1 H Sq Sk", map="mean"),
    AttentionCase("bias_keys", bias="B 1 1 Sk", span=_causal),
    AttentionCase("bias_pairs", H=3, bias="Sq Sk"),
    AttentionCase("bias_batch", H=4, Hk=2, bias="B 1 Sq Sk"),
    AttentionCase("bias_queries", bias="B H Sq 1"),
    AttentionCase("bias_scalar", bias="1 1 1 1", sink=True),
    AttentionCase("bias_float32", bias="1 H Sq Sk", bias_kind="float32"),
    AttentionCase("bias_minus_inf", Sq=70, Sk=3, bias="B 1 Sq Sk", bias_kind="-inf", map="full"),
    AttentionCase("bias_bool", bias="B 1 Sq Sk", bias_kind="bool", map="keys"),
    AttentionCase("bias_bool_few", Sq=2, Sk=3, bias="B H Sq Sk", bias_kind="bool"),
    AttentionCase("bias_decode", H=4, Hk=2, Sq=1, Sk=300, bias="1 H 1 Sk", sink=True, softcap=9.0),
    AttentionCase("sink", sink=True),
    AttentionCase("gate", gate="head"),
    AttentionCase("gate_scalar", gate="scalar", sink=True),
    AttentionCase("gate_zero", gate="zero"),
    AttentionCase("scale", scale=0.05),
    AttentionCase("softcap", softcap=7.0, spread=3.0),
    AttentionCase("softcap_few", B=4, Sq=2, Sk=530, D=64, softcap=5.0),  # neither side a whole tile
    AttentionCase("softcap_bias_map", softcap=12.0, bias="B H Sq Sk", map="mean"),
    AttentionCase("dropout", Sq=70, Sk=130, dropout_p=0.3, map="mean"),
    AttentionCase("dropout_gqa", H=4, Hk=2, Sq=3, Sk=70, dropout_p=0.1, gate="head", bias="1 1 Sq Sk"),
    AttentionCase("large_logits", Sq=40, Sk=200, spread=4.0, map="full"),
    AttentionCase("large_logits_few", Sq=2, Sk=390, D=96, spread=4.0, map="full"),
    AttentionCase("huge_logits", scale=100.0),
    AttentionCase(
        "everything", B=2, H=6, Hk=3, Sq=75, Sk=140, D=40, Dv=24, span=_random_span, bias="1 H Sq Sk", sink=True,
        gate="head", scale=0.3, softcap=11.0, dropout_p=0.2, map="mean",
    ),
]  # fmt: skip
