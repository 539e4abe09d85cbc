"""Which ptxas makes the machine code of the kernels: on Hopper one that computes wgmma's operands right.

Triton 3.6 and 3.7 take CUDA 12.8's ptxas for sm_90. A wgmma finds its tile in shared memory by a 64-bit descriptor,
address + constant; where that ptxas moves such a sum out of a loop, it may make the upper half of

    constant + carry + what some register holds        instead of        constant + carry + 0

so that the product reads other bytes, or none of the block's. The same Triton brings a newer ptxas for Blackwell, which
is right, and assembles for Hopper too. `bench.offline` looks for the mistake in everything that it compiles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import triton
from triton import knobs
from triton.runtime import JITFunction, driver

_RIGHT_SINCE = (12, 9)
_lock = threading.RLock()  # knobs belong to the process


def version() -> tuple[int, int]:
    """Of the ptxas that makes the kernels' code for Hopper, (12, 9) for CUDA 12.9's."""
    own = _version(knobs.nvidia.ptxas)
    return own if own >= _RIGHT_SINCE else _version(knobs.nvidia.ptxas_blackwell)


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """`triton.jit`, for a function that is launched: its code for Hopper is assembled right."""
    if function is None:
        return lambda function: kernel(function, **options)
    return triton.jit(function, **options) if knobs.runtime.interpret else _Kernel(function, **options)


class _Kernel(JITFunction):
    @property
    def cache_key(self) -> str:
        key = super().cache_key
        return f"{key}-ptxas {version()}" if _is_for_hopper() else key  # Triton puts one ptxas for all into the rest

    def _do_compile(self, *arguments: Any, **options: Any) -> Any:
        with _right_ptxas() if _is_for_hopper() else nullcontext():
            return super()._do_compile(*arguments, **options)


def _is_for_hopper() -> bool:
    target = driver.active.get_current_target()
    return (target.backend, target.arch) == ("cuda", 90)


@contextmanager
def _right_ptxas() -> Iterator[None]:
    with _lock, knobs.nvidia.scope():
        if _version(knobs.nvidia.ptxas) < _RIGHT_SINCE:
            knobs.nvidia.ptxas = knobs.nvidia.ptxas_blackwell.path
        yield


def _version(tool: knobs.NvidiaTool) -> tuple[int, int]:
    major, minor = tool.version.split(".")
    return int(major), int(minor)
