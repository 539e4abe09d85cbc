"""Masks as intervals: which keys each query may see, in O(Sq) memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, eq=False)
class KeySpan:
    """Query i of batch entry b sees the keys ``lo[b, i] <= j < hi[b, i]``.

    Two integers a row replace an Sq x Sk mask: every backend skips whole tiles by comparing numbers, and the
    intersection of two spans is a span again. Ends may lie outside ``[0, Sk]``; ``lo >= hi`` sees nothing.

    Args:
        lo: int32, (B or 1, Sq or 1), first visible key.
        hi: int32, (B or 1, Sq or 1), one past the last visible key.

    Raises:
        TypeError: an end is no int32 tensor.
        ValueError: an end is not two-dimensional, or the two do not broadcast or live on different devices.
    """

    lo: Tensor
    hi: Tensor

    def __post_init__(self) -> None:
        for name, end in (("lo", self.lo), ("hi", self.hi)):
            if not isinstance(end, Tensor) or end.dtype != torch.int32:
                came = end.dtype if isinstance(end, Tensor) else type(end).__name__
                raise TypeError(f"{name}: expected an int32 tensor (B or 1, Sq or 1), got {came}")
            if end.dim() != 2:
                raise ValueError(f"{name}: expected shape (B or 1, Sq or 1), got {tuple(end.shape)}")
        _check_broadcast("lo", self.lo, "hi", self.hi)

    @staticmethod
    def lengths(kv_len: Tensor) -> KeySpan:
        """Key padding: ``j < kv_len[b]``. kv_len: integers, (B,). Touches keys only, never the queries."""
        hi = _as_int32("kv_len", kv_len, 1)[:, None]
        return KeySpan(torch.zeros_like(hi), hi)

    @staticmethod
    def causal(Sq: int, Sk: int, device: torch.device | str | None = None) -> KeySpan:
        """Bottom-right aligned: ``j <= i + Sk - Sq``, so the last query sees every key."""
        hi = _diagonal(Sq, Sk, device) + 1
        return KeySpan(torch.zeros_like(hi), hi)

    @staticmethod
    def window(Sq: int, Sk: int, left: int, right: int, device: torch.device | str | None = None) -> KeySpan:
        """``-left <= j - (i + Sk - Sq) <= right``: a band around the bottom-right aligned diagonal."""
        centre = _diagonal(Sq, Sk, device)
        return KeySpan(centre - left, centre + (right + 1))

    @staticmethod
    def prefix(prefix_len: Tensor, Sq: int, Sk: int) -> KeySpan:
        """Prefix language model: ``j < prefix_len[b]``, or causal. prefix_len: integers, (B,)."""
        prefix = _as_int32("prefix_len", prefix_len, 1)
        hi = torch.maximum(prefix[:, None], _diagonal(Sq, Sk, prefix.device) + 1)
        return KeySpan(torch.zeros_like(hi), hi)

    @staticmethod
    def packed(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> KeySpan:
        """Documents back to back in one row (varlen, B == 1): query i sees the keys of its own document.

        Args:
            cu_seqlens_q: integers, (n + 1,), offsets of the n documents among the queries, from 0 to Sq.
            cu_seqlens_k: integers, (n + 1,), offsets of the same documents among the keys.
        """
        offsets_q, offsets_k = _as_int32("cu_seqlens_q", cu_seqlens_q, 1), _as_int32("cu_seqlens_k", cu_seqlens_k, 1)
        if len(offsets_q) != len(offsets_k) or len(offsets_q) < 1:
            raise ValueError(
                "cu_seqlens_q, cu_seqlens_k: expected the same number n + 1 >= 1 of offsets, "
                f"got {tuple(offsets_q.shape)} and {tuple(offsets_k.shape)}"
            )
        lengths = (offsets_q[1:] - offsets_q[:-1]).to(torch.int64)
        ends = torch.stack((offsets_k[:-1], offsets_k[1:]))
        lo, hi = torch.repeat_interleave(ends, lengths, dim=1).split(1)
        return KeySpan(lo, hi)

    @staticmethod
    def latest_media(media_index: Tensor, media_offsets: Tensor) -> KeySpan:
        """Flamingo (arXiv:2204.14198): each text token sees the keys of its latest picture only.

        Args:
            media_index: integers, (B, Sq), in -1 .. n - 1; -1 (no picture yet) sees nothing.
            media_offsets: integers, (B or 1, n + 1); picture m owns ``offsets[m] <= j < offsets[m + 1]``.
        """
        return KeySpan(*_media_ends(media_index, media_offsets))

    @staticmethod
    def previous_media(media_index: Tensor, media_offsets: Tensor) -> KeySpan:
        """Each text token sees every picture up to its latest: ``0 <= j < offsets[m + 1]``. See `latest_media`."""
        _, hi = _media_ends(media_index, media_offsets)
        return KeySpan(torch.zeros_like(hi), hi)

    @staticmethod
    def from_dense(mask: Tensor) -> KeySpan:
        """The span of a bool mask (Sq, Sk) or (B, Sq, Sk), True where a key is visible.

        Raises:
            TypeError: mask is not bool.
            ValueError: mask has another number of dimensions, or a row is no interval.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        if mask.dim() not in (2, 3):
            raise ValueError(f"mask: expected shape (Sq, Sk) or (B, Sq, Sk), got {tuple(mask.shape)}")
        mask = mask if mask.dim() == 3 else mask[None]
        key = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
        count = mask.sum(-1, dtype=torch.int32)
        if mask.shape[-1] == 0:
            return KeySpan(count, count)
        lo = torch.where(mask, key, mask.shape[-1]).amin(-1).to(torch.int32)
        last = torch.where(mask, key, -1).amax(-1).to(torch.int32)
        broken = ((count > 0) & (last - lo + 1 != count)).nonzero()
        if len(broken):
            b, i = broken[0].tolist()
            raise ValueError(
                f"mask: row {i} of batch entry {b} is no interval of keys ({len(broken)} such rows); "
                "pass such a mask as bias"
            )
        lo = torch.where(count > 0, lo, 0).to(torch.int32)
        return KeySpan(lo, lo + count)

    def __and__(self, other: KeySpan) -> KeySpan:
        """The keys that both spans show."""
        if not isinstance(other, KeySpan):
            return NotImplemented
        _check_broadcast("left span", self.lo, "right span", other.lo)
        _check_broadcast("left span", self.hi, "right span", other.hi)
        return KeySpan(torch.maximum(self.lo, other.lo), torch.minimum(self.hi, other.hi))

    def to(self, device: torch.device | str) -> KeySpan:
        """The same span on another device."""
        return KeySpan(self.lo.to(device), self.hi.to(device))

    def to_dense(self, Sk: int) -> Tensor:
        """bool, (B or 1, Sq or 1, Sk), True where a key is visible."""
        key = torch.arange(Sk, dtype=torch.int32, device=self.lo.device)
        return (key >= self.lo[..., None]) & (key < self.hi[..., None])


def _unflatten(children: Iterable[Any], _context: Any) -> KeySpan:
    span = object.__new__(KeySpan)  # a tree map may put anything in place of the tensors: no checks here
    for name, child in zip(("lo", "hi"), children, strict=True):
        object.__setattr__(span, name, child)
    return span


pytree.register_pytree_node(
    KeySpan,
    lambda span: ([span.lo, span.hi], None),
    _unflatten,
    serialized_type_name="fastfuse.KeySpan",
    flatten_with_keys_fn=lambda span: (
        [(pytree.GetAttrKey("lo"), span.lo), (pytree.GetAttrKey("hi"), span.hi)],
        None,
    ),
)


def _diagonal(Sq: int, Sk: int, device: torch.device | str | None) -> Tensor:
    """(1, Sq): the key that stands on query i's diagonal, bottom-right aligned."""
    return (torch.arange(Sq, dtype=torch.int32, device=device) + (Sk - Sq))[None]


def _as_int32(name: str, values: Tensor, dim: int) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype.is_floating_point or values.dtype == torch.bool:
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: expected a tensor of integers, got {came}")
    if values.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimension(s), got shape {tuple(values.shape)}")
    return values.to(torch.int32)


def _media_ends(media_index: Tensor, media_offsets: Tensor) -> tuple[Tensor, Tensor]:
    index, offsets = _as_int32("media_index", media_index, 2), _as_int32("media_offsets", media_offsets, 2)
    if offsets.shape[0] not in (1, index.shape[0]) or offsets.shape[1] < 1:
        raise ValueError(
            f"media_offsets: expected shape (B or 1, n + 1) for media_index {tuple(index.shape)}, "
            f"got {tuple(offsets.shape)}"
        )
    # Column 0 stands for index -1: an empty interval at the front.
    offsets = torch.cat((torch.zeros_like(offsets[:, :1]), offsets), 1).expand(index.shape[0], -1)
    column = index.to(torch.int64) + 1
    none = index < 0
    lo = offsets.gather(1, column).masked_fill(none, 0)
    hi = offsets.gather(1, (column + 1).clamp(max=offsets.shape[1] - 1)).masked_fill(none, 0)
    return lo, hi


def _check_broadcast(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.device != b.device:
        raise ValueError(f"{name_a}, {name_b}: expected one device, got {a.device} and {b.device}")
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)):
        raise ValueError(f"{name_a}, {name_b}: shapes do not broadcast, got {tuple(a.shape)} and {tuple(b.shape)}")
