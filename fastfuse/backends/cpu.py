"""C++ kernels on the CPU (csrc/cpu): AMX, AVX-512-BF16, AVX-512, AVX2 or portable code, chosen at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastfuse.backends import Problem

try:
    import fastfuse._C as _C

    _missing = None
except ImportError as error:
    _missing = f"the C++ extension is not built ({error})"

NAME = "cpu"
HEAD_MULTIPLE = 1
MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    return _missing


def reasons(problem: Problem) -> list[str]:
    why = []
    if problem.device != "cpu":
        why.append(f"tensors are on {problem.device}, it takes cpu")
    if problem.dtype not in DTYPES:
        why.append(f"dtype is {problem.dtype}, it takes {', '.join(str(d) for d in DTYPES)}")
    if any(n > MAX_HEAD_DIM for n in problem.head_dims):
        why.append(f"head dims are {problem.head_dims}, it takes up to {MAX_HEAD_DIM}")
    return why


if _missing is None:
    attention = _C.attention
    attention_fwd = _C.attention_fwd
    attention_map = _C.attention_map
    pair_softmax_fwd = _C.pair_softmax_fwd
    pair_softmax_fwd_kept = _C.pair_softmax_fwd_kept
    pair_softmax_bwd_kept = _C.pair_softmax_bwd
    pair_sigmoid = _C.pair_sigmoid
    scaled = _C.scaled
    similarity_topk = _C.similarity_topk
    retrieval_ranks = _C.retrieval_ranks

    def attention_bwd(*args: Any) -> list[Tensor]:
        return _C.attention_bwd(*args, None)

    def pair_softmax_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return pair_softmax_bwd_kept(*args, None)


def isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, slowest first: portable, avx2, avx512, avx512bf16, amx."""
    return tuple(_C.cpu_isas())


def isa() -> str:
    """The instruction set in use: the best that the machine has, or what FASTFUSE_CPU_ISA or `set_isa` capped it to."""
    return _C.cpu_isa()


def set_isa(name: str) -> None:
    """Use another instruction set from now on, in every thread.

    Raises:
        ValueError: the machine does not have it.
    """
    if name not in isas():
        raise ValueError(f"name: expected one of {', '.join(isas())} on this machine, got {name!r}")
    _C.set_cpu_isa(name)


def empty_cache() -> None:
    """Gives back the memory, at most 128 MiB, that freed results and scratch have left for later calls."""
    _C.empty_cache()
