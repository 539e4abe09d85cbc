"""One way to register an op under `torch.ops.fastfuse`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastfuse.backends import OPS

_library = torch.library.Library("fastfuse", "DEF")


def register(schema: str, implementation: Callable, fake: Callable) -> None:
    """Define `fastfuse::<schema>`: one implementation for every device, and the shapes it returns."""
    name = schema.partition("(")[0]
    OPS[name] = schema
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastfuse::{name}", fake, lib=_library)
