"""Counter-based dropout: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def dropout_mask(seed: int | Tensor, shape: Sequence[int], p: float) -> Tensor:
    """The elements that dropout keeps: a pure function of the seed, the same on every backend.

    Element (b, h, i, j) reads word ``j % 4`` of Philox 4x32-10 with key ``(seed mod 2^32, seed div 2^32)`` and counter
    ``(j div 4, i, b * H + h, 0)``; it is kept when that word is at least ``floor(p * 2^32)``.

    Args:
        seed: a 64-bit integer, or a 0-dim int64 tensor (the mask is then made on its device).
        shape: (B, H, Sq, Sk).
        p: probability of being dropped, 0 <= p < 1.

    Returns:
        bool, (B, H, Sq, Sk), True where the element is kept.
    """
    B, H, Sq, Sk = shape
    device = seed.device if isinstance(seed, Tensor) else None
    seed = torch.as_tensor(seed, dtype=torch.int64)
    quads = (Sk + 3) // 4
    count = lambda n: torch.arange(n, dtype=torch.int64, device=device)  # noqa: E731
    counter = torch.broadcast_tensors(count(quads), count(Sq)[:, None], count(B * H)[:, None, None])
    words = _philox([*counter, torch.zeros_like(counter[0])], [seed & _WORD, (seed >> 32) & _WORD])
    threshold = min(int(p * 2**32), _WORD)
    kept = torch.stack(words, -1) >= threshold  # (B * H, Sq, quads, 4)
    return kept.reshape(B, H, Sq, quads * 4)[..., :Sk]


def _philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Four 32-bit words per counter, each held in an int64."""
    for _ in range(_ROUNDS):
        (hi0, lo0), (hi1, lo1) = (_multiply(m, c) for m, c in zip(_MULTIPLIER, counter[::2], strict=True))
        counter = [hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return counter


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of the product of two 32-bit numbers, without leaving int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
