"""The CUDA kernels of the contrastive losses, executed on the host: the case table against float64."""

from __future__ import annotations

import pytest
import torch
from cases_contrastive import CONTRASTIVE_CASES, ContrastiveCase
from emulation import emulated
from platforms import name
from test_contrastive import check_case

DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CONTRASTIVE_CASES, ids=name)
def test_matches_float64(case: ContrastiveCase, dtype: torch.dtype) -> None:
    with emulated(seed=len(case.name)):
        check_case(case, "cuda", dtype)
