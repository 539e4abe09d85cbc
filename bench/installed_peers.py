"""Packages with GPU kernels of their own, where installed. Each call takes what its counterpart in `peers` does.

One that can not do a case, or that its adapter no longer fits, raises, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

_FLASH = {"flash-attn 2": "flash_attn", "flash-attn 3": "flash_attn_interface", "flash-attn 4": "flash_attn.cute"}


def attention(causal: bool) -> dict[str, Callable[..., Tensor]]:
    """FlashAttention's versions by name: dense or causal, no mask and no bias."""
    return {name: partial(_flash, module, causal) for name, module in _FLASH.items() if _installed(module)}


def clip() -> dict[str, Callable[..., Tensor]]:
    """As `peers.clip_dense`."""
    return _those_installed({"memeff": _memeff_clip, "inf_cl": _inf_clip})


def info_nce() -> dict[str, Callable[..., Tensor]]:
    """As `peers.info_nce_dense`."""
    return _those_installed({"liger_kernel": _liger_info_nce})


def _those_installed(found: dict[str, Callable[..., Tensor]]) -> dict[str, Callable[..., Tensor]]:
    return {name: call for name, call in found.items() if _installed(name)}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _flash(module: str, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = import_module(module).flash_attn_func(q, k, v, causal=causal)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def _memeff_clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Its temperature is a number: the scale gets no gradient. stable=True would rescale the others."""
    loss = import_module("memeff").MemoryEfficientCLIPLoss(temperature=1 / scale.item(), stable=False)
    return loss(image, text)


def _inf_clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    a, b = (F.normalize(t, dim=-1) for t in (image, text))
    one_way = import_module("inf_cl").cal_flash_loss
    return (one_way(a, b, scale=scale).mean() + one_way(b, a, scale=scale).mean()) / 2


def _liger_info_nce(query: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Linear cross entropy, with the keys as the vocabulary's weights."""
    loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    labels = torch.arange(len(query), device=query.device)
    return loss(F.normalize(keys, dim=-1), (scale * F.normalize(query, dim=-1)).to(query.dtype), labels)
