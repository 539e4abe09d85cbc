"""Captions from a trained model: greedy and beam search, and where each word looked.

The image is encoded and its keys and values are projected once. The beams of a picture are stacked along the query
axis of every cross-attention, so they read that one copy; only the words' own keys and values follow the beams.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfuse.models import Captioner
from fastfuse.nn import KVCache


class Generated(NamedTuple):
    """Captions of B pictures."""

    tokens: Tensor  # (B, S) int64: bos, words, eos, then pad
    scores: Tensor  # (B,) float32: log-probability, over length ** length_penalty


@torch.inference_mode()
def generate(
    model: Captioner,
    images: Tensor,
    *,
    beams: int = 1,
    max_length: int | None = None,
    length_penalty: float = 0.0,
) -> Generated:
    """The likeliest caption of each picture that a search with ``beams`` hypotheses finds; 1 is greedy.

    Args:
        model: in evaluation mode.
        images: (B, 3, image_size, image_size) float.
        beams: hypotheses a picture, at most the vocabulary's size / 2.
        max_length: tokens, bos and eos counted; at most and by default the model's.
        length_penalty: scores are divided by length to this power; 0 compares plain log-probabilities.
    """
    config = model.config
    longest = config.max_length if max_length is None else max_length
    if not 2 <= longest <= config.max_length:
        raise ValueError(f"max_length must be between 2 and the model's {config.max_length}, got {max_length}")
    if not 1 <= beams <= config.vocab_size // 2:
        raise ValueError(f"beams must be between 1 and half the vocabulary, {config.vocab_size // 2}, got {beams}")
    device, batch = images.device, len(images)
    image = model.project_image(model.encode_image(images)[0])
    caches = [KVCache() for _ in range(config.text_layers + config.fusion_layers)]
    first_row = torch.arange(batch, device=device)[:, None] * beams  # of each picture among the (B * beams) hypotheses

    tokens = torch.full((batch, beams, longest), config.pad_id, device=device)
    tokens[..., 0] = config.bos_id
    scores = torch.full((batch, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the first step's beams are equal: let one of them count
    best_tokens = tokens[:, 0].clone()
    best_scores = torch.full((batch,), -torch.inf, device=device)

    for position in range(1, longest):
        logits = model.next_word(tokens[..., position - 1].reshape(-1, 1), position - 1, image, caches)
        log_probs = logits.float().log_softmax(-1).view(batch, beams, -1)
        log_probs[..., [config.pad_id, config.bos_id]] = -torch.inf
        if position == longest - 1:  # no room for another word
            log_probs[..., : config.eos_id] = log_probs[..., config.eos_id + 1 :] = -torch.inf
        candidates, flat = (scores[..., None] + log_probs).flatten(1).topk(2 * beams)  # (B, 2 beams), falling
        parents, words = flat // config.vocab_size, flat % config.vocab_size
        ends = words == config.eos_id

        # A hypothesis that ends counts where it is among the first `beams` candidates.
        ended, which = candidates[:, :beams].masked_fill(~ends[:, :beams], -torch.inf).max(-1)
        ended = ended / position**length_penalty
        better = ended > best_scores
        parent = parents.gather(1, which[:, None])[:, 0]
        finished = tokens[torch.arange(batch, device=device), parent]
        finished[:, position] = config.eos_id
        best_tokens = torch.where(better[:, None], finished, best_tokens)
        best_scores = torch.where(better, ended, best_scores)

        # The others go on.
        scores, order = candidates.masked_fill(ends, -torch.inf).topk(beams)
        parents, words = parents.gather(1, order), words.gather(1, order)
        tokens = tokens.gather(1, parents[..., None].expand_as(tokens))
        tokens[..., position] = words
        reachable = scores[:, 0] / (longest - 1) ** length_penalty  # log-probabilities only fall
        if (best_scores >= reachable).all():
            break
        for cache in caches:
            cache.reorder((first_row + parents).flatten())
    used = int((best_tokens != config.pad_id).sum(-1).max())
    return Generated(best_tokens[:, :used], best_scores)


@torch.inference_mode()
def word_maps(model: Captioner, images: Tensor, tokens: Tensor) -> Tensor:
    """Where the model looked when it chose each token: (B, S, grid, grid) float32, each summing to 1.

    Args:
        model: in evaluation mode.
        images: (B, 3, image_size, image_size) float.
        tokens: (B, S) captions, as :func:`generate` gives them. Map i belongs to token i; map 0 (of bos) is zero.
    """
    maps = model.attention_maps(images, tokens[:, :-1]).mean(0)  # over layers: (B, S - 1, Si)
    grid = model.config.image_size // model.config.patch_size
    return torch.cat([torch.zeros_like(maps[:, :1]), maps], 1).unflatten(-1, (grid, grid))
