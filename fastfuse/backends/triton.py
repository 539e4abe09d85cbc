"""Triton kernels (kernels/): any GPU that Triton serves; with TRITON_INTERPRET=1 tensors on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastfuse.tuning.tiles import Tile, tile

if TYPE_CHECKING:
    from fastfuse.backends import Problem
    from fastfuse.kernels.attention_problem import AttentionProblem

NAME = "triton"
MAX_HEAD_DIM = 256
MIN_ARCH = 80
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED_ARCH = 90  # in the interpreter, tiles are those of this compute capability
_INTERPRETED_PROCESSORS = 132  # and programs are spread over as many multiprocessors
_FEW_QUERIES = 16  # up to so many rows, a tile of its own
_SPLIT_KEYS = 256  # keys that a program should have at least before they are shared out


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    from triton import knobs

    return knobs.runtime.interpret


def arch() -> int:
    """The compute capability to cut tiles for, 90 for sm_90."""
    if interpreting():
        return _INTERPRETED_ARCH
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def processors() -> int:
    """The number of multiprocessors to spread programs over."""
    if interpreting():
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties().multi_processor_count


def unavailable() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if not interpreting() and not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET=1 is not set"
    return None


def reasons(problem: Problem) -> list[str]:
    why = []
    if problem.device != "cuda" and not (problem.device == "cpu" and find_spec("triton") and interpreting()):
        why.append(f"tensors are on {problem.device}, it takes cuda, and cpu with TRITON_INTERPRET=1")
    if problem.dtype not in DTYPES:
        why.append(f"dtype is {problem.dtype}, it takes {', '.join(str(d) for d in DTYPES)}")
    if any(n > MAX_HEAD_DIM for n in problem.head_dims):
        why.append(f"head dims are {problem.head_dims}, it takes up to {MAX_HEAD_DIM}")
    return why


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from fastfuse.kernels.attention_fwd import attention_fwd
    from fastfuse.kernels.attention_problem import AttentionProblem

    problem = AttentionProblem(q, k, v, *rest)
    few = problem.rows <= _FEW_QUERIES
    cut = _attention_tile("attention_decode" if few else f"attention_fwd{_kind(problem)}", problem)
    blocks = problem.B * problem.Hk * -(-problem.rows // cut.block_m)
    splits = max(min(processors() // blocks, problem.Sk // _SPLIT_KEYS), 1)
    return attention_fwd(problem, cut, splits)


def attention_bwd(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from fastfuse.kernels.attention_bwd import attention_bwd
    from fastfuse.kernels.attention_problem import AttentionProblem

    lo, hi, bias, sink, gate, out, lse_pair, *options, needs = rest
    problem = AttentionProblem(q, k, v, lo, hi, bias, sink, gate, *options)
    kind = _kind(problem)
    kernels = (f"attention_dq{kind}", f"attention_dkdv{kind}", "attention_sums")
    cuts = tuple(_attention_tile(kernel, problem) for kernel in kernels)
    return attention_bwd(problem, dout, dlse, out, lse_pair, needs, cuts, processors())


def attention_map(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    from fastfuse.kernels.attention_problem import AttentionProblem
    from fastfuse.kernels.attention_sums import attention_map

    lo, hi, bias, lse_pair, scale, softcap, mode = rest
    problem = AttentionProblem(q, k, None, lo, hi, bias, None, None, scale, softcap)
    return attention_map(problem, lse_pair, mode, _attention_tile("attention_sums", problem), processors())


def _kind(problem: AttentionProblem) -> str:
    """The suffix of the rules where softcap, a bias or dropout fill registers that a larger tile would take."""
    return "" if problem.plain and problem.bias is None and not problem.dropout_p else "_modified"


def _attention_tile(kernel: str, problem: AttentionProblem) -> Tile:
    return tile(kernel, arch(), problem.q.element_size(), max(problem.D, problem.Dv))
