"""A captioning model in one file: image encoder, contrastive head, text decoder that looks at the image.

After CoCa (Yu et al. 2022, https://arxiv.org/abs/2205.01917)::

    picture -> stem -> image layers -> tokens --+--> pooler (1 query) -> image feature --+
                                                |                                        +-- contrastive loss
    caption -> lower text layers (causal) ------|---> state at the last word -> feature -+
                     |                          |
                     +--> upper text layers (causal, and cross-attend to the tokens) -> next word: caption loss

The image's keys and values for *all* upper layers are projected once, in one product, and serve every caption of
that picture: several captions in training, or the beams of a search, are stacked along the query axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastfuse as ff
from fastfuse.nn import AttentionPooler, ContextKV, CrossAttention, KVCache, eager, set_attention
from fastfuse.nn.core import Attention
from fastfuse.span import KeySpan


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of a :class:`Captioner`; JSON through ``asdict`` and ``CaptionerConfig(**json)``."""

    vocab_size: int
    image_size: int = 64  # pixels, square
    patch_size: int = 8  # pixels; the image has (image_size / patch_size) ** 2 tokens
    stem: str = "conv"  # "conv": 3x3 convolutions that halve until patch_size; "patch": one strided convolution
    image_width: int = 128
    image_heads: int = 4
    image_layers: int = 2
    text_width: int = 128
    text_heads: int = 4
    text_layers: int = 2  # lower: text only, causal
    fusion_layers: int = 2  # upper: also cross-attend to the image
    max_length: int = 64  # tokens of a caption, with its start and end
    caption_queries: int = 0  # tokens that the upper layers see, pooled from the image's; 0: the image's own
    embed_dim: int = 128  # contrastive features
    tie_embeddings: bool = True  # the caption head is the word embedding
    caption_weight: float = 2.0
    contrastive_weight: float = 1.0
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        for side in ("image", "text"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            if width % heads or width // heads % 8:
                raise ValueError(f"{side}_width {width} must be {side}_heads {heads} times a multiple of 8")
        if self.stem not in ("conv", "patch"):
            raise ValueError(f"stem must be 'conv' or 'patch', got {self.stem!r}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"stem 'conv' needs a patch_size that is a power of two, got {self.patch_size}")

    @classmethod
    def preset(cls, name: str, vocab_size: int, **changes: Any) -> CaptionerConfig:
        """One of :data:`PRESETS` with this vocabulary; ``changes`` replace single fields."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(vocab_size=vocab_size, **{**PRESETS[name], **changes})


def _coca(image_width: int, image_layers: int, text_width: int, text_layers: int, **rest: Any) -> dict[str, Any]:
    """CoCa's proportions: heads of 64, as many lower as upper text layers, 256 pooled tokens."""
    sizes = {"image_width": image_width, "image_heads": image_width // 64, "image_layers": image_layers}
    sizes |= {"text_width": text_width, "text_heads": text_width // 64, "embed_dim": text_width}
    sizes |= {"text_layers": text_layers, "fusion_layers": text_layers, "caption_queries": 256}
    return {**sizes, "image_size": 224, "stem": "patch", "max_length": 77, **rest}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 32,
        "image_width": 32,
        "image_heads": 2,
        "image_layers": 1,
        "text_width": 32,
        "text_heads": 2,
        "text_layers": 1,
        "fusion_layers": 2,
        "embed_dim": 16,
    },
    "demo": {},
    "small": {
        "image_size": 128,
        "image_width": 256,
        "image_layers": 6,
        "text_width": 256,
        "text_layers": 3,
        "fusion_layers": 3,
        "embed_dim": 256,
    },
    "coca-base": _coca(768, 12, 512, 6, patch_size=32),
    "coca-large": _coca(1024, 24, 768, 12, patch_size=14, tie_embeddings=False),
}


class Losses(NamedTuple):
    """What a training step sees, each a float32 scalar."""

    total: Tensor
    caption: Tensor  # mean negative log-likelihood of a word, nats
    contrastive: Tensor


class MLP(nn.Module):
    """Two layers with a squared ReLU between (So et al. 2021, https://arxiv.org/abs/2109.08668)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(x))
        return self.down(x * x)


class ImageLayer(nn.Module):
    """Pre-norm transformer layer over image tokens (B, S, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class TextLayer(nn.Module):
    """Pre-norm causal layer over words (N, S, W); with ``fuses`` it also cross-attends to the image."""

    def __init__(self, width: int, heads: int, image_width: int | None = None) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        if image_width is not None:
            self.norm_image = nn.LayerNorm(width)
            self.image_attention = CrossAttention(width, heads, kdim=image_width, vdim=image_width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(
        self,
        x: Tensor,
        span: KeySpan | None,
        cache: KVCache | None = None,
        image: ContextKV | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x: (N, S, W); image: B pictures' keys and values, N a multiple of B; ``maps`` collects (N, S, Si)."""
        x = x + self.attention(self.norm_attention(x), span=span, cache=cache)
        if image is not None and maps is None:
            x = x + self.image_attention(self.norm_image(x), image)
        elif image is not None and maps is not None:
            seen, where = self.image_attention(self.norm_image(x), image, return_map="mean")
            x = x + seen
            maps.append(where)
        return x + self.mlp(self.norm_mlp(x))


def stem(config: CaptionerConfig) -> nn.Sequential:
    """(B, 3, image_size, image_size) -> (B, image_width, grid, grid)."""
    if config.stem == "patch":
        return nn.Sequential(nn.Conv2d(3, config.image_width, config.patch_size, stride=config.patch_size))
    halvings = int(math.log2(config.patch_size))
    widths = [max(32, config.image_width >> (halvings - 1 - i)) for i in range(halvings)]
    layers: list[nn.Module] = []
    for last, width in pairwise([3, *widths]):
        layers += [nn.Conv2d(last, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
    layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.GroupNorm(8, widths[-1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], config.image_width, 1))


def grid_positions(grid: int, width: int) -> Tensor:
    """Sine and cosine of row and column, (grid ** 2, width): where the learned positions start."""
    frequency = 1.0 / 100.0 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (grid, width / 4)
    wave = torch.cat([angle.sin(), angle.cos()], -1)
    return torch.cat([wave.repeat_interleave(grid, 0), wave.repeat(grid, 1)], -1)


class Captioner(nn.Module):
    """CoCa-like captioner: :meth:`forward` gives the losses; fastfuse.training.decode writes captions.

    Args:
        config: sizes.
        attention: "fused" calls fastfuse's operations, "eager" the same formulas in plain PyTorch. The weights are
            the same; :attr:`attention` may be set at any time.
    """

    def __init__(self, config: CaptionerConfig, attention: Attention = "fused") -> None:
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch_size
        self.stem = stem(config)
        self.image_positions = nn.Parameter(grid_positions(grid, config.image_width))
        self.image_layers = nn.ModuleList(
            ImageLayer(config.image_width, config.image_heads) for _ in range(config.image_layers)
        )
        self.image_norm = nn.LayerNorm(config.image_width)
        width, heads = config.image_width, config.image_heads
        self.image_query = AttentionPooler(width, heads, num_queries=1)
        self.caption_queries = (
            AttentionPooler(width, heads, num_queries=config.caption_queries) if config.caption_queries else None
        )
        self.image_projection = nn.Linear(width, config.embed_dim, bias=False)

        self.word_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.word_positions = nn.Parameter(torch.empty(config.max_length, config.text_width))
        self.text_layers = nn.ModuleList(
            TextLayer(config.text_width, config.text_heads) for _ in range(config.text_layers)
        )
        self.text_norm = nn.LayerNorm(config.text_width)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)
        self.fusion_layers = nn.ModuleList(
            TextLayer(config.text_width, config.text_heads, width) for _ in range(config.fusion_layers)
        )
        self.caption_norm = nn.LayerNorm(config.text_width)
        if not config.tie_embeddings:
            self.caption_head = nn.Linear(config.text_width, config.vocab_size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialise()
        self.attention = attention

    def _initialise(self) -> None:
        """Products keep the scale of their input; embeddings start small, as GPT-2's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.word_embedding.weight, std=0.02)
        nn.init.normal_(self.word_positions, std=0.02)

    @property
    def head_weight(self) -> Tensor:
        """The caption head's (vocab_size, text_width)."""
        return self.word_embedding.weight if self.config.tie_embeddings else self.caption_head.weight

    @property
    def attention(self) -> str:
        """Either "fused" or "eager"."""
        return self._attention

    @attention.setter
    def attention(self, attention: Attention) -> None:
        set_attention(self, attention)
        self._attention = attention
        operations = ff if attention == "fused" else eager
        self._clip_loss = operations.clip_loss
        self._linear_cross_entropy = operations.linear_cross_entropy

    def forward(self, images: Tensor, tokens: Tensor, ids: Tensor | None = None, hide_words: bool = False) -> Losses:
        """Losses of B pictures with C captions each; the contrastive one takes the first of them.

        Args:
            images: (B, 3, image_size, image_size) float.
            tokens: (B, C, S) or (B, S) int64: bos, words, eos, then pad.
            ids: (B,) int64, equal where captions say the same; None where no two do.
            hide_words: the decoder gets no words and must find all of the first caption's in the picture at once. It
                learns to look before it learns which words go together (CapPa, Tschannen et al. 2023,
                https://arxiv.org/abs/2306.07915), and so can say what it has never read.
        """
        config = self.config
        tokens = tokens if tokens.dim() == 3 else tokens[:, None]
        tokens = tokens[:, :1] if hide_words else tokens
        batch, captions, _ = tokens.shape
        rows = tokens.flatten(0, 1)

        context, image_feature = self.encode_image(images)
        hidden, text_feature = self.encode_text(rows)
        contrastive = self._clip_loss(
            image_feature, text_feature.unflatten(0, (batch, captions))[:, 0], self.logit_scale.exp(), ids=ids
        )
        if hide_words:
            hidden = self._nothing_read(rows)
        hidden = self.fuse(hidden, self.project_image(context), self._span(rows))
        target = F.pad(rows[:, 1:], (0, 1), value=config.pad_id)
        caption = self._linear_cross_entropy(
            hidden.flatten(0, 1), self.head_weight, target.flatten(), ignore_index=config.pad_id
        )
        total = config.caption_weight * caption + config.contrastive_weight * contrastive
        return Losses(total, caption, contrastive)

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> what the upper text layers see (B, Si, image_width), and the image feature (B, embed_dim)."""
        x = self._image_tokens(images)
        feature = self.image_projection(self.image_query(x)[:, 0])
        return (x if self.caption_queries is None else self.caption_queries(x)), feature

    def _image_tokens(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2) + self.image_positions
        for layer in self.image_layers:
            x = layer(x)
        return self.image_norm(x)

    def project_image(self, context: Tensor) -> list[ContextKV]:
        """Every upper layer's keys and values of the pictures, (B, H, Si, D) each, in one product."""
        layers = [layer.image_attention for layer in self.fusion_layers if isinstance(layer, TextLayer)]
        return ContextKV.project(context, layers)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S) tokens -> states (N, S, text_width) and the text feature (N, embed_dim), read at the last word."""
        span = self._span(tokens)
        hidden = self.lower(tokens, span)
        last = (tokens != self.config.pad_id).sum(-1) - 1
        rows = torch.arange(len(tokens), device=tokens.device)
        return hidden, self.text_projection(self.text_norm(hidden[rows, last]))

    def lower(
        self, tokens: Tensor, span: KeySpan | None, caches: list[KVCache] | None = None, start: int = 0
    ) -> Tensor:
        """The text-only layers: (N, S) tokens whose first stands at position ``start`` -> (N, S, text_width)."""
        x = self.word_embedding(tokens) + self.word_positions[start : start + tokens.shape[1]]
        for i, layer in enumerate(self.text_layers):
            x = layer(x, span, None if caches is None else caches[i])
        return x

    def _nothing_read(self, tokens: Tensor) -> Tensor:
        """The lower layers' states (N, S, text_width) when every word is padding: the same in each row."""
        count, length = tokens.shape
        blank = torch.full_like(tokens[:1], self.config.pad_id)
        blank[:, 0] = self.config.bos_id
        return self.lower(blank, KeySpan.causal(length, length, device=tokens.device)).expand(count, -1, -1)

    def fuse(
        self,
        hidden: Tensor,
        image: list[ContextKV],
        span: KeySpan | None,
        caches: list[KVCache] | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """The upper layers: states (N, S, text_width) -> normalised states for the caption head."""
        for i, layer in enumerate(self.fusion_layers):
            hidden = layer(hidden, span, None if caches is None else caches[i], image[i], maps)
        return self.caption_norm(hidden)

    def next_word(self, tokens: Tensor, position: int, image: list[ContextKV], caches: list[KVCache]) -> Tensor:
        """One step of decoding: the words (N, 1) at ``position`` -> logits (N, vocab_size) of the words after them.

        ``caches`` (one for each text layer, lower ones first) hold what came before, and take these words in.
        """
        lower, upper = caches[: len(self.text_layers)], caches[len(self.text_layers) :]
        hidden = self.fuse(self.lower(tokens, None, lower, position), image, None, upper)
        return F.linear(hidden[:, -1], self.head_weight)

    def attention_maps(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Mean over heads of the upper layers' attention to the picture: (fusion_layers, B, S, grid * grid) float32.

        Row i is where the model looks to choose token i + 1. With ``caption_queries`` a word sees pooled tokens, whose
        own maps lead on to the picture.
        """
        context, pooled = self._image_tokens(images), None
        if self.caption_queries is not None:
            context, pooled = self.caption_queries(context, return_map="mean")  # (B, queries, grid * grid)
        maps: list[Tensor] = []
        span = self._span(tokens)
        self.fuse(self.lower(tokens, span), self.project_image(context), span, maps=maps)
        return torch.stack(maps) if pooled is None else torch.stack(maps) @ pooled

    def _span(self, tokens: Tensor) -> KeySpan:
        length = tokens.shape[1]
        words = (tokens != self.config.pad_id).sum(-1)
        return KeySpan.causal(length, length, device=tokens.device) & KeySpan.lengths(words)
