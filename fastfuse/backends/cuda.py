"""CUDA C++ kernels for Hopper (csrc/cuda): wgmma, TMA, warp-specialised. Compute capability 9.0 only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import ModuleType

    from fastfuse.backends import Problem

extension: ModuleType | None = None  # the compiled ops; they say for which device
_missing = ""
try:
    extension = importlib.import_module("fastfuse._cuda")
except ImportError as error:
    _missing = f"the CUDA extension is not built ({error})"

NAME = "cuda"
HEAD_MULTIPLE = 8
MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16)
OPS = ("attention_fwd", "attention_bwd", "attention_map", "pair_softmax_fwd", "pair_softmax_bwd", "pair_sigmoid")


def unavailable() -> str | None:
    if extension is None:
        return _missing
    if extension.device != "cuda":
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability()
    return None if capability == (9, 0) else f"the device's compute capability is {capability}, it takes (9, 0)"


def reasons(problem: Problem) -> list[str]:
    why = []
    device = getattr(extension, "device", "cuda")
    if problem.device != device:
        why.append(f"tensors are on {problem.device}, it takes {device}")
    if problem.dtype not in DTYPES:
        why.append(f"dtype is {problem.dtype}, it takes {', '.join(str(d) for d in DTYPES)}")
    if any(n > MAX_HEAD_DIM for n in problem.head_dims):
        why.append(f"head dims are {problem.head_dims}, it takes up to {MAX_HEAD_DIM}")
    return why


def __getattr__(op: str) -> Any:
    """The ops that the extension has; where it is not built, their names, for `fastfuse info`."""
    if extension is None and op in OPS:
        return _not_built
    return getattr(extension, op)


def _not_built(*_: Any) -> Any:
    raise NotImplementedError(_missing)
