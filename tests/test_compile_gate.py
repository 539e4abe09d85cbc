"""Triton kernels compile for GPUs that are not there: a part of `make gate`, which does all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_kernels_compile_within_the_chip(arch: str) -> None:
    """No spills, shared memory within the chip's, every product on the tensor cores."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gate", "--quick", "--jobs", "1", "--arch", arch]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
