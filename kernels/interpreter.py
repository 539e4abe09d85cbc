"""What Triton's interpreter needs of us."""

from __future__ import annotations

from typing import Any

from triton import knobs
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_with_index(tensor: type, scope: Any) -> None:
    """Its scalars are arrays of one element, which numpy 2.4 no longer takes for the bound of a range."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


if knobs.runtime.interpret:
    interpreter._patch_lang_tensor = _patch_tensor_with_index
