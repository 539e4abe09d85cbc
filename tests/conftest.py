from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from cubins import disassembler

collect_ignore = [] if shutil.which("nvcc") and disassembler() else ["test_cuda_gate.py"]


def pytest_configure() -> None:
    """Without a GPU, Triton's kernels run in its interpreter, which has to be asked for before they are imported.

    Where tests run side by side, each process keeps to one thread: pools of two fight for the cores.
    """
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Every torch.empty is full of NaN: an output element that a kernel forgets is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
