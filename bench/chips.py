"""What the chips have that the Triton kernels are compiled for, by compute capability: 90 for sm_90."""

from __future__ import annotations

ARCHS = (80, 90, 100)  # compiled for; each stands for the chips around it
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # of shared memory that a block may have
SM_SHARED_KIB = {80: 164, 90: 228, 100: 228}  # of a multiprocessor
SM_WARPS = {80: 64, 90: 64, 100: 64}  # that a multiprocessor holds
SM_REGISTERS = 65536  # of a multiprocessor
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}  # A100; H100 and H200; B200
