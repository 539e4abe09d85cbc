"""The backends, what each can do, and the choice among them.

A backend is a module of this package with

    NAME                                   its public name
    unavailable() -> str | None            why it can not be used at all on this machine, or None
    reasons(problem) -> list[str]          why it can not serve this problem; empty when it can
    <op>(...)                              one function for each op it serves, called with the op's arguments
    HEAD_MULTIPLE                          attention: of what D and Dv have to be multiples, 1 to 8; a call pads them
    scaled                                 optional: (factor * float32 tensor).to(dtype) in one pass
    <name>_fwd_kept, <name>_bwd_kept       optional: the forward returns one tensor more (uint8, perhaps empty), for a
                                           backward of the same backend, which takes it last; for speed only
    attention                              optional: attention_fwd with autograd of its own, for a call that nobody
                                           watches; for speed only

and nothing more: a new backend is one new file and its name in `_NAMES`.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from fastfuse.tuning.preference import passed_over, preference

_NAMES = ("reference", "cpu", "triton", "cuda")
LARGEST_HEAD_MULTIPLE = 8


class Problem(NamedTuple):
    """What the choice of a backend depends on."""

    op: str  # the op's name: "attention_fwd", ...
    device: str  # "cpu", "cuda", ...
    dtype: torch.dtype
    head_dims: tuple[int, ...] = ()  # attention: (D, Dv)


class BackendStatus(NamedTuple):
    """One row of `fastfuse.backends()`."""

    name: str
    usable: bool
    reason: str  # why it is not usable, or why "auto" passes it over on the GPU that is here; else ""
    ops: tuple[str, ...]  # the ops it serves


OPS: dict[str, str] = {}  # op name -> its schema; filled by fastfuse.ops as it registers them


def check_name(backend: str) -> None:
    """Raises ValueError unless backend is "auto" or a backend's name."""
    if backend != "auto" and backend not in _NAMES:
        raise ValueError(f'backend: expected "auto" or one of {", ".join(_NAMES)}, got {backend!r}')


@cache
def load(name: str) -> ModuleType:
    """The backend module of that name.

    Raises:
        ValueError: there is no backend of that name.
    """
    check_name(name)
    return importlib.import_module(f"fastfuse.backends.{name}")


def refusals(module: ModuleType, problem: Problem) -> list[str]:
    """Every reason why this backend can not serve the problem; empty when it can."""
    missing = module.unavailable()
    if missing:
        return [missing]
    if not hasattr(module, problem.op):
        return [f"it has no {problem.op}"]
    return module.reasons(problem)


@cache
def module_for(
    op: str, device: torch.device, dtype: torch.dtype, head_dims: tuple[int, ...], backend: str
) -> ModuleType:
    """`select` in one look-up, by what a call has at hand."""
    return select(Problem(op, device.type, dtype, head_dims), backend)


def select(problem: Problem, backend: str) -> ModuleType:
    """The module that serves the problem: the named backend, or for "auto" the first of the preference that can.

    Raises:
        ValueError: there is no backend of that name.
        NotImplementedError: the named backend, or each of them, can not serve the problem; with every reason.
    """
    refused = []
    for name in _candidates(problem.op, problem.device, backend):
        module = load(name)
        why = refusals(module, problem)
        if not why:
            return module
        refused += [f"{name}: {reason}" for reason in why]
    raise NotImplementedError(f"no backend for {_describe(problem)}\n  " + "\n  ".join(refused))


def head_multiple(device: str, backend: str) -> int:
    """Of what D and Dv have to be multiples for any backend that may serve; traced, when none is at hand, for all."""
    if torch.compiler.is_compiling():
        return LARGEST_HEAD_MULTIPLE
    return max(load(name).HEAD_MULTIPLE for name in _candidates("attention_fwd", device, backend))


def backends() -> list[BackendStatus]:
    """Each backend: whether it is usable here, why not or why not by itself, and the ops it serves."""
    rows = []
    for name in _NAMES:
        module = load(name)
        missing = module.unavailable()
        reason = missing or passed_over(name, "cuda") or ""
        rows.append(BackendStatus(name, missing is None, reason, tuple(op for op in OPS if hasattr(module, op))))
    return rows


def _candidates(op: str, device: str, backend: str) -> tuple[str, ...]:
    return preference(op, device) if backend == "auto" else (backend,)


def _describe(problem: Problem) -> str:
    sizes = f", head dims {problem.head_dims}" if problem.head_dims else ""
    return f"{problem.op} on {problem.device} in {str(problem.dtype).removeprefix('torch.')}{sizes}"
