"""Bad arguments of cross_attention raise ValueError or TypeError that names the argument and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastfuse as ff


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype)


GOOD: dict[str, Any] = {"q": ones(2, 4, 3, 8), "k": ones(2, 2, 5, 8), "v": ones(2, 2, 5, 16)}

BAD = [
    ({"q": ones(4, 3, 8)}, ValueError, r"q: .*\(4, 3, 8\)"),
    ({"q": [1.0]}, TypeError, "q: .*list"),
    ({"q": ones(2, 4, 3, 8, dtype=torch.int64)}, TypeError, "q, k, v: .*int64"),
    ({"k": ones(2, 2, 5, 8, dtype=torch.bfloat16)}, TypeError, "q, k, v: .*bfloat16"),
    ({"k": ones(2, 2, 5, 16)}, ValueError, r"k: .*\(2, 4, 3, 8\), got \(2, 2, 5, 16\)"),
    ({"k": ones(3, 2, 5, 8)}, ValueError, r"k: .*\(3, 2, 5, 8\)"),
    ({"k": ones(2, 3, 5, 8), "v": ones(2, 3, 5, 8)}, ValueError, r"head count .*\(2, 4, 3, 8\) and k \(2, 3, 5, 8\)"),
    ({"v": ones(2, 2, 6, 16)}, ValueError, r"v: .*\(2, 2, 5, 8\), got \(2, 2, 6, 16\)"),
    ({"k": GOOD["k"].to("meta"), "v": GOOD["v"].to("meta")}, ValueError, "q, k, v: .*cpu, meta"),
    ({"q": ones(2, 0, 3, 8)}, ValueError, "head count"),
    ({"q": ones(2, 4, 3, 0), "k": ones(2, 2, 5, 0)}, ValueError, "k: "),
    ({"span": torch.ones(3, 5).bool()}, TypeError, "span: .*Tensor"),
    ({"span": ff.KeySpan.lengths(torch.tensor([1, 2, 3]))}, ValueError, r"span: .*\(2, 4, 3, 8\), got \(3, 1\)"),
    ({"span": ff.KeySpan.causal(4, 5)}, ValueError, r"span: .*got \(1, 1\)|span: .*got \(1, 4\)"),
    ({"bias": ones(2, 4, 3, 6)}, ValueError, r"bias: .*\(2, 4, 3, 5\), got \(2, 4, 3, 6\)"),
    ({"bias": ones(1, 2, 4, 3, 5)}, ValueError, "bias: "),
    ({"bias": ones(5, dtype=torch.int32)}, TypeError, "bias: .*int32"),
    ({"bias": ones(5).to("meta")}, ValueError, "bias: .*meta"),
    ({"sink": ones(2)}, ValueError, r"sink: expected shape \(4,\) .*got \(2,\)"),
    ({"sink": 1.0}, TypeError, "sink: .*float"),
    ({"gate": ones(2)}, ValueError, r"gate: .*got \(2,\)"),
    ({"gate": ones(4, dtype=torch.bool)}, TypeError, "gate: .*bool"),
    ({"scale": float("nan")}, ValueError, "scale: .*nan"),
    ({"scale": "8"}, TypeError, "scale: .*str"),
    ({"softcap": -1.0}, ValueError, "softcap: .*-1.0"),
    ({"softcap": float("inf")}, ValueError, "softcap: .*inf"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p: .*1.0"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p: .*-0.1"),
    ({"seed": 0.5}, TypeError, "seed: .*float"),
    ({"return_map": "heads"}, ValueError, "return_map: .*'heads'"),
    ({"backend": "cudnn"}, ValueError, "backend: .*'cudnn'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = GOOD | change
    with pytest.raises(error, match=message):
        ff.cross_attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_a_backend_that_cannot_serve_gives_its_reasons() -> None:
    x = torch.ones(1, 1, 2, 8, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"float64(.|\n)*cpu: "):
        ff.cross_attention(x, x, x, backend="cpu")


def test_merge_and_joint() -> None:
    out, lse = ones(1, 2, 3, 8), ones(1, 2, 3)
    with pytest.raises(ValueError, match="parts: "):
        ff.merge_attention([])
    with pytest.raises(ValueError, match=r"parts\[1\]: .*\(1, 2, 4\)"):
        ff.merge_attention([(out, lse), (out, ones(1, 2, 4))])
    with pytest.raises(ValueError, match=r"qs, ks, vs: .*1, 2 and 1"):
        ff.joint_attention([out], [out, out], [out])
    with pytest.raises(ValueError, match="spans: expected 1"):
        ff.joint_attention([out], [out], [out], [None, None])
