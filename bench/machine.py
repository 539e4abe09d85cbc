"""The device that the benchmarks run on: its name, its ceilings, how a call is timed and what memory it needs.

"cpu", "cuda", or "interpreter": Triton's kernels on the CPU, a rehearsal of what a GPU would do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

import fastfuse
from fastfuse.backends import cpu
from fastfuse.info import cpu_model

T = TypeVar("T")
DEVICES = ("cpu", "cuda", "interpreter")
_PRODUCT = {"cpu": 1536, "cuda": 8192, "interpreter": 256}  # rows of a square matrix
_COPY = {"cpu": 2**27, "cuda": 2**30, "interpreter": 2**20}  # bytes
_STATUS = Path("/proc/self/status")
_FLUSH_BYTES = 2**28  # more than any GPU's cache
_HEAD_START = 2_000_000  # cycles that a GPU waits, about a millisecond, while Python fills its queue
_device = "cpu"


def use(device: str) -> None:
    """Everything after it is about that device, one of DEVICES. Before Triton is imported."""
    global _device
    _device = device
    if device == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"


def device() -> str:
    return _device


def torch_device() -> str:
    """Where the tensors are: "cpu" or "cuda"."""
    return "cuda" if _device == "cuda" else "cpu"


def slug() -> str:
    """A folder name for the device: the GPU; or processor, instruction set in use, threads."""
    if _device == "cuda":
        return "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower()))
    model = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", cpu_model().lower())
    isa = [] if cpu.unavailable() else [cpu.isa()]
    return "-".join([*re.findall(r"[a-z0-9]+", model), *isa, str(torch.get_num_threads()), "threads"])


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"fastfuse": fastfuse.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if _device == "cpu":
        return found
    found["triton"] = metadata.version("triton")
    if _device == "cuda":
        found |= {"CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version()), "driver": _driver()}
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def product_flops() -> int:
    """Operations of `big_product`."""
    return 2 * _PRODUCT[_device] ** 3


def copy_bytes() -> int:
    """Bytes read and written by `big_copy`."""
    return 2 * _COPY[_device]


@cache
def big_product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """A matrix product that is bound by arithmetic."""
    a, b = (torch.randn(_PRODUCT[_device], _PRODUCT[_device], device=torch_device()).to(dtype) for _ in range(2))
    return lambda: a @ b


@cache
def big_copy() -> Callable[[], Tensor]:
    """A copy that is bound by memory."""
    source = torch.randint(100, (_COPY[_device],), dtype=torch.uint8, device=torch_device())
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one call, and its result. On a GPU: of the GPU's work, from a cold cache."""
    if _device == "cuda":
        return _timed_by_events(call)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _timed_by_events(call: Callable[[], T]) -> tuple[float, T]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush_memory().zero_()
    torch.cuda._sleep(_HEAD_START)
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, result


@cache
def _flush_memory() -> Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def peak_mib(call: Callable[[], object]) -> float | None:
    """MiB that are needed at most during the call beyond what was there before, its results included.

    On a CPU what the process grows by, None where Linux does not tell; what fastfuse keeps from earlier calls is given
    back first, so that it counts. On a GPU what torch's allocator gives out.
    """
    if _device == "cuda":
        return _peak_allocated_mib(call)
    if not _STATUS.exists():
        return None
    if cpu.unavailable() is None:
        cpu.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before) / 1024


def _peak_allocated_mib(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _status_kib(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match, f"{_STATUS} has no {field}"
    return int(match.group(1))
