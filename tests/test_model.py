"""The captioner: shapes, fused against eager, decoding."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from fastfuse.models import PRESETS, Captioner, CaptionerConfig
from fastfuse.nn import ContextKV
from fastfuse.training import generate, word_maps

VOCABULARY = 20


def build(attention="eager", **changes):
    torch.manual_seed(0)
    return Captioner(CaptionerConfig.preset("tiny", VOCABULARY, **changes), attention)


def inputs(batch=3, captions=2, length=9):
    """Pictures and captions of unequal lengths."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    tokens = torch.randint(3, VOCABULARY, (batch, captions, length), generator=generator)
    tokens[..., 0], tokens[..., -1] = 1, 2
    tokens[0, -1, 4], tokens[0, -1, 5:] = 2, 0
    return images, tokens


@pytest.mark.parametrize("hide_words", [False, True], ids=["read", "look"])
@pytest.mark.parametrize("changes", [{}, {"caption_queries": 5, "stem": "patch", "tie_embeddings": False}], ids=str)
def test_fused_and_eager_give_the_same_losses_and_gradients(changes, hide_words):
    images, tokens = inputs()
    ids = torch.tensor([4, 7, 4])
    results = {}
    for attention in ("eager", "fused"):
        model = build(attention, **changes)
        losses = model(images, tokens, ids, hide_words)
        losses.total.backward()
        results[attention] = losses, {name: p.grad for name, p in model.named_parameters()}
    (eager, eager_grads), (fused, fused_grads) = results["eager"], results["fused"]
    for a, b in zip(eager, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for name, grad in eager_grads.items():
        assert grad is not None, f"{name} has no gradient"
        torch.testing.assert_close(fused_grads[name], grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_attention_can_be_switched_on_a_model_that_exists():
    images, tokens = inputs()
    model = build("fused")
    fused = model(images, tokens).total
    model.attention = "eager"
    torch.testing.assert_close(model(images, tokens).total, fused, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="attention"):
        model.attention = "dense"


def test_captions_of_a_picture_are_independent():
    """Captions stacked on one picture's keys and values give the mean of each one's own loss."""
    images, tokens = inputs(captions=3)
    tokens = tokens.masked_fill(tokens == 0, 5)  # equal lengths: then the mean over words is the mean over captions
    tokens[0, -1, 4] = 5
    tokens[..., -1] = 2
    model = build().eval()
    together = model(images, tokens).caption
    alone = torch.stack([model(images, tokens[:, i]).caption for i in range(3)])
    torch.testing.assert_close(together, alone.mean())


def test_hidden_words_are_not_read():
    """The states of the decoder are then the same for every caption, and only the loss knows the words."""
    images, tokens = inputs(captions=1)
    model = build().eval()
    swapped = tokens.clone()
    swapped[1, 0, 1:4] = tokens[1, 0, 1:4].flip(0)
    with torch.no_grad():
        hidden = model._nothing_read(tokens[:, 0])
        assert torch.equal(hidden, model._nothing_read(swapped[:, 0]))
    read = [model(images, t).caption for t in (tokens, swapped)]
    assert not torch.equal(*read)
    assert torch.isfinite(model(images, tokens, hide_words=True).caption)


def test_padding_changes_nothing():
    images, tokens = inputs(captions=1)
    model = build().eval()
    padded = torch.nn.functional.pad(tokens, (0, 6))
    for a, b in zip(model(images, tokens), model(images, padded), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["eager", "fused"])
@pytest.mark.parametrize("beams", [1, 4])
def test_decoding_a_word_at_a_time_scores_as_the_whole_caption(attention, beams):
    images, _ = inputs()
    model = build(attention).eval()
    tokens, scores = generate(model, images, beams=beams, max_length=12)
    assert tokens[:, 0].eq(1).all()
    assert (tokens == 2).sum(-1).eq(1).all()
    with torch.no_grad():
        caches = model.project_image(model.encode_image(images)[0])
        span = model._span(tokens)
        logits = model.fuse(model.lower(tokens, span), caches, span) @ model.head_weight.T
    log_probs = logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    expected = (log_probs * (tokens[:, 1:] != 0)).sum(-1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_greedy_takes_the_likeliest_word():
    images, _ = inputs()
    model = build().eval()
    tokens = generate(model, images, max_length=10).tokens
    with torch.no_grad():
        image = model.project_image(model.encode_image(images)[0])
        span = model._span(tokens)
        logits = model.fuse(model.lower(tokens, span), image, span) @ model.head_weight.T
    logits[..., :2] = -torch.inf
    choice = logits.argmax(-1)[:, :-1]
    within = (tokens[:, 1:] != 0) & (torch.arange(1, tokens.shape[1]) < 9)  # at the length limit the end is forced
    assert torch.equal(choice[within], tokens[:, 1:][within])


def test_more_beams_find_no_worse_captions():
    images, _ = inputs(batch=6)
    model = build().eval()
    greedy, beam = (generate(model, images, beams=beams, max_length=10).scores for beams in (1, 6))
    assert (beam >= greedy - 1e-5).all()


def test_beams_share_one_copy_of_the_image(monkeypatch):
    """Keys and values of the image are made once, for B rows, whatever the number of beams and of words."""
    made = []
    project = ContextKV.project

    def counted(context, layers, **options):
        made.append(project(context, layers, **options))
        return made[-1]

    monkeypatch.setattr(ContextKV, "project", staticmethod(counted))
    images, _ = inputs()
    model = build().eval()
    seen = []
    for layer in model.fusion_layers:
        layer.image_attention.register_forward_pre_hook(lambda _, args: seen.append((args[0].shape, args[1])))
    generate(model, images, beams=5, max_length=8)
    assert len(made) == 1
    assert len(made[0]) == len(model.fusion_layers)
    assert all(shape[0] == 15 and context.k.shape[0] == 3 for shape, context in seen)


def test_word_maps_are_probabilities_over_the_picture():
    images, tokens = inputs()
    for changes in ({}, {"caption_queries": 5}):
        maps = word_maps(build("fused", **changes).eval(), images, tokens[:, 0])
        assert maps.shape == (3, 9, 4, 4)
        torch.testing.assert_close(maps[:, 1:].sum((-1, -2)), torch.ones(3, 8))
        assert not maps[:, 0].any()


def test_autocast_stays_close():
    images, tokens = inputs()
    for attention in ("eager", "fused"):
        model = build(attention)
        exact = model(images, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images, tokens)
        rounded.total.backward()
        torch.testing.assert_close(rounded.total, exact.total, rtol=2e-2, atol=2e-2)


def test_presets():
    for name in PRESETS:
        config = CaptionerConfig.preset(name, VOCABULARY)
        assert CaptionerConfig(**asdict(config)) == config
    with torch.device("meta"):
        size = sum(p.numel() for p in Captioner(CaptionerConfig.preset("coca-large", 49408)).parameters())
    assert 500e6 < size < 800e6  # CoCa ViT-L/14 has 638 million


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_size": 30}, "image_size"),
        ({"text_heads": 3}, "text_width"),
        ({"stem": "dense"}, "stem"),
        ({"patch_size": 1}, "patch_size"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        CaptionerConfig.preset("tiny", VOCABULARY, **changes)


@pytest.mark.parametrize(("options", "named"), [({"beams": 0}, "beams"), ({"max_length": 999}, "max_length")], ids=str)
def test_searches_that_can_not_be_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        generate(build().eval(), inputs()[0], **options)
