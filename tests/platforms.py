"""Where the tests can run here: each usable backend, the cpu backend once for each instruction set.

Where there is a GPU, triton and cuda run on it, and reference on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastfuse.backends import cpu, cuda, load, triton


@dataclass(frozen=True)
class Platform:
    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    isa: str | None = None  # of the cpu backend

    def __str__(self) -> str:
        variant = self.isa or ("" if self.device == "cpu" else self.device)
        return f"{self.backend}-{variant}" if variant else self.backend

    @property
    def dtype(self) -> torch.dtype:
        """Of tests for which one dtype is enough."""
        return self.dtypes[0]

    def serves(self, op: str) -> bool:
        return hasattr(load(self.backend), op)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, the backend runs as this platform says."""
        if self.isa is None:
            yield
            return
        before = cpu.isa()
        cpu.set_isa(self.isa)
        try:
            yield
        finally:
            cpu.set_isa(before)


_HALVES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED = (torch.float32, torch.float16)  # the interpreter's product of bfloat16 is wrong


def _platforms() -> list[Platform]:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    found = [Platform("reference", device, _HALVES) for device in devices]
    if cpu.unavailable() is None:
        found += [Platform("cpu", "cpu", _HALVES, isa) for isa in cpu.isas()]
    if triton.unavailable() is None:
        interpreted = triton.interpreting()
        found.append(Platform("triton", "cpu" if interpreted else "cuda", _INTERPRETED if interpreted else _HALVES))
    if cuda.unavailable() is None:
        found.append(Platform("cuda", "cuda", cuda.DTYPES))
    return found


PLATFORMS = _platforms()
_BEST = {platform.backend: platform for platform in PLATFORMS}  # of each backend: the cpu's instruction sets rise
PAIRS = [
    (a, b)
    for a in PLATFORMS
    for b in PLATFORMS
    if a.backend != b.backend
    and a.device == b.device
    and ("triton" not in (a.backend, b.backend) or {a, b} <= {*_BEST.values()})
]
USABLE = {platform.backend for platform in PLATFORMS if platform.device == "cpu"}
EVERYWHERE = [(platform, dtype) for platform in PLATFORMS for dtype in platform.dtypes]


def common_dtype(a: Platform, b: Platform) -> torch.dtype:
    """The first that both take."""
    return next(dtype for dtype in a.dtypes if dtype in b.dtypes)


def name(value: object) -> str:
    """A test id: "cpu-avx2", "bfloat16", a case's name."""
    return str(value).removeprefix("torch.")
