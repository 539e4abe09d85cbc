"""Triton kernels (kernels/): any GPU that Triton serves; with TRITON_INTERPRET=1 tensors on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastfuse.backends import Problem

NAME = "triton"
MAX_HEAD_DIM = 256
MIN_ARCH = 80
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED_ARCH = 90  # in the interpreter, tiles are those of this compute capability


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
