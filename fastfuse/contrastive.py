"""Contrastive losses over all pairs of two feature matrices; no N x M tensor in forward or backward.

One exception, on the CPU: where the products of all pairs fit into 72 MiB (float32 up to 4224 x 4224, 16-bit features
up to 6016 x 6016), a softmax loss whose gradient is wanted keeps them from forward to backward, which then takes about
2/3 of its time. Larger problems keep nothing; SigLIP never does.

x_ij = logit_scale * a_i . b_j, features L2-normalised inside. Statistics and losses are float32 (float64 for float64
features, on `reference`). Losses are 0-dim, deterministic, and differentiable in features, scale and bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastfuse import reference
from fastfuse.backends import check_name
from fastfuse.ops.pair import pair_sigmoid, pair_softmax
from fastfuse.pairing import Pairing

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    *,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE of CLIP (arXiv:2103.00020): the mean of the image-to-text and text-to-image cross entropies.

    A row's loss is the mean of -log softmax over its positives; 0 for a row without one (possible when N != M).

    Args:
        image: (N, D) features, float32, bfloat16 or float16 (float64 on `reference`).
        text: (M, D), the same dtype.
        logit_scale: multiplier of the cosines, already exponentiated; a number or a 0-dim tensor, differentiable.
        ids: (N,) integers: equal ids are positives of each other (needs N == M). Default: image i with text i.
        label_smoothing: share of the target spread evenly over all columns, 0 <= label_smoothing <= 1.
        normalize: L2-normalise the features first.
        group: a process group over whose ranks the loss goes; not supported yet.
        backend: "auto", or a name of `fastfuse.backends()`.

    Returns:
        0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or values do not fit; the message names the argument, what came and what fits.
        NotImplementedError: group is given, or the named backend can not serve the call.
    """
    image, text, scale = _prepare(image, text, "image", "text", logit_scale, group, backend)
    _check_probability("label_smoothing", label_smoothing)
    pairing = Pairing(*_positive_keys(ids, image, text, "image", "text"), normalize=bool(normalize))
    return pair_softmax(
        image, text, scale, pairing, mode="both", label_smoothing=float(label_smoothing), backend=backend
    )


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    ids: Tensor | None = None,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (arXiv:2303.15343): sum of softplus(-label * logit) over all pairs, divided by N.

    logit = logit_scale * cosine + logit_bias; the label is +1 for positives and -1 for all other pairs.

    Args:
        image: (N, D) features, float32, bfloat16 or float16 (float64 on `reference`).
        text: (M, D), the same dtype.
        logit_scale, logit_bias: numbers or 0-dim tensors, differentiable.
        ids: (N,) integers: equal ids are positives of each other (needs N == M). Default: image i with text i.
        normalize, group, backend: as in `clip_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError, NotImplementedError: as `clip_loss`.
    """
    image, text, scale = _prepare(image, text, "image", "text", logit_scale, group, backend)
    bias = _scalar("logit_bias", logit_bias, image)
    pairing = Pairing(*_positive_keys(ids, image, text, "image", "text"), normalize=bool(normalize))
    return pair_sigmoid(image, text, scale, bias, pairing, backend=backend) / max(len(image), 1)


def info_nce_loss(
    query: Tensor,
    keys: Tensor,
    logit_scale: float | Tensor,
    *,
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """InfoNCE (arXiv:1807.03748), one direction: the mean over queries of -log softmax at the query's positive key.

    Args:
        query: (N, D) features, float32, bfloat16 or float16 (float64 on `reference`).
        keys: (M, D), the same dtype.
        logit_scale: multiplier of the cosines, a number or a 0-dim tensor, differentiable.
        positives: (N,) key index of each query's positive, 0 <= index < M. Default: key i for query i (needs N <= M).
        query_ids: (N,) integers, with
        key_ids: (M,) integers: other keys that carry the query's id are false negatives and leave the denominator.
        normalize, group, backend: as in `clip_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError, NotImplementedError: as `clip_loss`.
    """
    query, keys, scale = _prepare(query, keys, "query", "keys", logit_scale, group, backend)
    N, M = len(query), len(keys)
    if positives is None:
        if N > M:
            raise ValueError(
                f"positives: needed where there are more queries {tuple(query.shape)} than keys {tuple(keys.shape)}"
            )
        positives = torch.arange(N, device=query.device)
    else:
        positives = _labels("positives", positives, query, "query")
        if positives.device.type == "cpu" and not torch.compiler.is_compiling() and N:
            low, high = int(positives.min()), int(positives.max())
            if low < 0 or high >= M:
                raise ValueError(
                    f"positives: expected key indices 0 <= index < {M} of keys {tuple(keys.shape)}, got {low}..{high}"
                )
    if (query_ids is None) != (key_ids is None):
        given, missing = ("query_ids", "key_ids") if key_ids is None else ("key_ids", "query_ids")
        raise ValueError(f"{missing}: expected with {given}, got None")
    skips: tuple[Tensor | None, Tensor | None] = (None, None)
    if query_ids is not None and key_ids is not None:
        skips = _labels("query_ids", query_ids, query, "query"), _labels("key_ids", key_ids, keys, "keys")
    pairing = Pairing(positives, torch.arange(M, device=query.device), *skips, normalize=bool(normalize))
    return pair_softmax(query, keys, scale, pairing, mode="rows", backend=backend)


def sup_con_loss(
    features: Tensor,
    ids: Tensor,
    logit_scale: float | Tensor,
    *,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. (arXiv:2004.11362).

    A row's loss is the mean of -log softmax over the other rows with its id; the row itself is left out. Rows without a
    positive give 0 and do not count in the mean.

    Args:
        features: (N, D), float32, bfloat16 or float16 (float64 on `reference`).
        ids: (N,) integers.
        logit_scale: multiplier of the cosines (1 / temperature), a number or a 0-dim tensor, differentiable.
        normalize, group, backend: as in `clip_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError, NotImplementedError: as `clip_loss`.
    """
    features, _, scale = _prepare(features, features, "features", "features", logit_scale, group, backend)
    ids = _labels("ids", ids, features, "features")
    return _self_softmax(features, ids, scale, normalize, backend)


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    logit_scale: float | Tensor,
    *,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """NT-Xent of SimCLR (arXiv:2002.05709): each of 2N views must find its other view among all but itself.

    Args:
        z1: (N, D) features of the first views, float32, bfloat16 or float16 (float64 on `reference`).
        z2: (N, D), the second views, the same dtype.
        logit_scale: multiplier of the cosines (1 / temperature), a number or a 0-dim tensor, differentiable.
        normalize, group, backend: as in `clip_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError, NotImplementedError: as `clip_loss`.
    """
    z1, z2, scale = _prepare(z1, z2, "z1", "z2", logit_scale, group, backend)
    if z1.shape != z2.shape:
        raise ValueError(f"z2: expected the shape of z1 {tuple(z1.shape)}, got {tuple(z2.shape)}")
    ids = torch.arange(len(z1), device=z1.device).repeat(2)
    return _self_softmax(torch.cat([z1, z2]), ids, scale, normalize, backend)


def _self_softmax(features: Tensor, ids: Tensor, scale: Tensor, normalize: bool, backend: str) -> Tensor:
    own = torch.arange(len(features), device=features.device)
    pairing = Pairing(ids, None, own, None, skip_positives=True, normalize=bool(normalize))
    return pair_softmax(features, None, scale, pairing, mode="symmetric", mean_over_positives=True, backend=backend)


# ---- arguments ----


def _prepare(
    a: Tensor, b: Tensor, a_name: str, b_name: str, logit_scale: float | Tensor, group: Any, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked features, in the autocast dtype where autocast is on, and the scale as a tensor."""
    if group is not None:
        raise NotImplementedError("group: losses over a process group are not supported yet, expected None")
    check_name(backend)
    a, b = check_features(a, b, a_name, b_name)
    return a, b, _scalar("logit_scale", logit_scale, a)


def check_features(a: Tensor, b: Tensor, a_name: str, b_name: str) -> tuple[Tensor, Tensor]:
    """(N, D) and (M, D) of one dtype and device, in the autocast dtype where autocast is on.

    Raises:
        TypeError, ValueError: they are not; the message names the argument.
    """
    for name, t in ((a_name, a), (b_name, b)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor (N, D), got {type(t).__name__}")
        if t.dtype not in _FLOATS:
            raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {t.dtype}")
        if t.dim() != 2:
            raise ValueError(f"{name}: expected shape (N, D), got {tuple(t.shape)}")
    if a.device != b.device:
        raise ValueError(f"{b_name}: expected device {a.device} as {a_name}, got {b.device}")
    if a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(
            f"{b_name}: expected (M, D) with the D >= 1 of {a_name} {tuple(a.shape)}, got {tuple(b.shape)}"
        )
    device = a.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        a, b = (t if t.dtype == torch.float64 else t.to(dtype) for t in (a, b))
    if a.dtype != b.dtype:
        raise TypeError(f"{b_name}: expected {a.dtype} as {a_name}, got {b.dtype}")
    return a, b


def _scalar(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """0-dim, in the dtype of the computation."""
    dtype = reference.compute_dtype(like.dtype)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a number or a float tensor, got {value.dtype}")
        if value.numel() != 1:
            raise ValueError(f"{name}: expected a number or a tensor of one element, got shape {tuple(value.shape)}")
        if value.device != like.device:
            raise ValueError(f"{name}: expected device {like.device} as the features, got {value.device}")
        return value.reshape(()).to(dtype)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number or a tensor of one element, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return torch.full((), value, dtype=dtype, device=like.device)


def _check_probability(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0 <= {name} <= 1, got {value}")


def _labels(name: str, labels: Tensor, features: Tensor, features_name: str) -> Tensor:
    """(N,) int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected an integer tensor (N,), got {type(labels).__name__}")
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected an integer tensor, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}: expected shape ({len(features)},) for {features_name} {tuple(features.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    if labels.device != features.device:
        raise ValueError(f"{name}: expected device {features.device} as {features_name}, got {labels.device}")
    return labels.to(torch.int64).contiguous()


def _positive_keys(ids: Tensor | None, a: Tensor, b: Tensor, a_name: str, b_name: str) -> tuple[Tensor, Tensor | None]:
    if ids is None:
        return torch.arange(len(a), device=a.device), torch.arange(len(b), device=a.device)
    if len(a) != len(b):
        raise ValueError(f"ids: expected as many {a_name} as {b_name} rows, got {tuple(a.shape)} and {tuple(b.shape)}")
    return _labels("ids", ids, a, a_name), None
