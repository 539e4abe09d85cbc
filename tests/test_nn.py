"""Modules: torch's weights give torch's results, fused equals eager with its gradients, sharing changes nothing."""

import copy
from collections import Counter

import pytest
import torch
from budget import error_and_allowance
from torch import nn

import fastfuse as ff
from fastfuse.nn import (
    AttentionPooler,
    ContextKV,
    CrossAttention,
    GatedCrossAttention,
    JointAttention,
    KVCache,
    RelationLearning,
    SharedRepresentation,
    set_attention,
)
from fastfuse.nn.relation_learning import pair_geometry

B, SQ, SK, E, H = 3, 7, 11, 32, 4
DRAWS = 4


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lengths(*values):
    return ff.KeySpan.lengths(torch.tensor(values, dtype=torch.int32))


def randomise(module, seed=1):
    """Give every parameter a value that no initialisation hides behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def assert_draws_within_budget(draw):
    """The budget of tests/budget.py for the results of draw(seed): ours, truth and eager, by name.

    The largest rounding error of one draw is a matter of luck, so both sides are summed over a few.
    """
    error, allowed = Counter(), Counter()
    for seed in range(DRAWS):
        ours, truth, eager = draw(seed)
        for name in truth:
            sides = error_and_allowance(name, ours[name], truth[name], eager[name], ours[name].dtype)
            error[name] += sides[0]
            allowed[name] += sides[1]
    for name in error:
        assert error[name] <= allowed[name], f"{name}: error {error[name]:.2e}, allowed {allowed[name]:.2e}"


def results_and_gradients(module, call, inputs):
    """Everything that comes out of call(module, *inputs) and, for a random cotangent, every gradient."""
    module.zero_grad()
    inputs = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = call(module, *inputs)
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    total = sum((out * randn(*out.shape, seed=9).to(out.dtype)).sum() for out in outputs if out.requires_grad)
    total.backward()
    found |= {f"gradient of input {i}": t.grad for i, t in enumerate(inputs) if t.is_floating_point()}
    return found | {f"gradient of {name}": p.grad for name, p in module.named_parameters()}


# --- the weights and results of torch.nn.MultiheadAttention


@pytest.mark.parametrize("attention", ["fused", "eager"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (24, 24), (24, 40), (E, 40)])
def test_torch_weights_give_torch_results(kdim, vdim, bias, batch_first, attention):
    theirs = nn.MultiheadAttention(E, H, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first)
    ours = CrossAttention(E, H, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first, attention=attention)
    kv_len = torch.tensor([SK, 4, 1])
    padding = torch.arange(SK) >= kv_len[:, None]
    inputs = [randn(B, SQ, E), randn(B, SK, ours.kdim, seed=1), randn(B, SK, ours.vdim, seed=2)]
    if not batch_first:
        inputs = [t.transpose(0, 1) for t in inputs]

    def call_torch(module, *inputs):
        out, weights = module(*inputs, key_padding_mask=padding)
        return out, weights.detach()  # ours are not differentiable

    def call_ours(module, *inputs):
        return module(*inputs, span=ff.KeySpan.lengths(kv_len), return_map="mean")

    def draw(seed):
        randomise(theirs, seed)
        ours.load_state_dict(theirs.state_dict())
        exact = copy.deepcopy(theirs).double()
        return (
            results_and_gradients(ours, call_ours, inputs),
            results_and_gradients(exact, call_torch, [t.double() for t in inputs]),
            results_and_gradients(theirs, call_torch, inputs),
        )

    assert_draws_within_budget(draw)
    nn.MultiheadAttention(E, H, bias=bias, kdim=kdim, vdim=vdim).load_state_dict(ours.state_dict())


def test_initial_weights_are_distributed_as_torchs():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 4)
    torch.manual_seed(0)
    ours = CrossAttention(64, 4)
    for name, parameter in theirs.named_parameters():
        assert ours.get_parameter(name).std().item() == pytest.approx(parameter.std().item(), rel=0.05)


def test_one_context_is_keys_and_values_and_none_is_the_query():
    module = randomise(CrossAttention(E, H))
    x, context = randn(B, SQ, E), randn(B, SK, E, seed=1)
    torch.testing.assert_close(module(x, context), module(x, context, context))
    torch.testing.assert_close(module(x), module(x, x, x))


# --- fused equals eager


def boxes():
    low = torch.rand(B, SK, 2, generator=torch.Generator().manual_seed(3)) * 0.6
    size = torch.rand(B, SK, 2, generator=torch.Generator().manual_seed(4)) * 0.4
    return torch.cat([low, low + size], -1)


MEDIA = ff.KeySpan.latest_media(torch.tensor([[-1, -1, 0, 0, 0, 1, 1]] * B), torch.tensor([[0, 5, SK]]))
PADDED = lengths(SK, 4, 1)
IDS = torch.tensor([5, 6, 5, 7])
ROWS = (randn(4, 12), randn(4, 20, seed=1), randn(4, 8, seed=2))
MODALITIES = {"image": 12, "text": 20, "audio": 8}

CASES = {
    "cross": (
        lambda: CrossAttention(E, H, kdim=24, vdim=24),
        lambda m, x, c: m(x, c, span=PADDED, return_map="mean"),
        (randn(B, SQ, E), randn(B, SK, 24, seed=1)),
    ),
    "self, causal, per-head map": (
        lambda: CrossAttention(E, H),
        lambda m, x: m(x, span=ff.KeySpan.causal(SQ, SQ), return_map="full"),
        (randn(B, SQ, E),),
    ),
    "cross with bias and gate": (
        lambda: CrossAttention(E, H),
        lambda m, x, c, bias, gate: m(x, c, bias=bias, gate=gate, return_map="keys"),
        (randn(B, SQ, E), randn(B, SK, E, seed=1), randn(1, H, SQ, SK, seed=2), randn(H, seed=3)),
    ),
    "cross where some see nothing": (
        lambda: CrossAttention(E, H),
        lambda m, x, c: m(x, c, span=lengths(0, 4, SK), return_map="mean"),
        (randn(B, SQ, E), randn(B, SK, E, seed=1)),
    ),
    "gated": (
        lambda: GatedCrossAttention(E, H, 24),
        lambda m, x, c: m(x, c, span=MEDIA, return_map="mean"),
        (randn(B, SQ, E), randn(B, SK, 24, seed=1)),
    ),
    "joint": (
        lambda: JointAttention((16, 24, 40), E, H),
        lambda m, *streams: m(streams, (None, PADDED, lengths(2, 5, 0))),
        (randn(B, SQ, 16), randn(B, SK, 24, seed=1), randn(B, 5, 40, seed=2)),
    ),
    "pooler": (
        lambda: AttentionPooler(E, H, 5, kdim=24),
        lambda m, c: m(c, span=PADDED, return_map="mean"),
        (randn(B, SK, 24),),
    ),
    "shared, clip": (
        lambda: SharedRepresentation(MODALITIES, 16),
        lambda m, *x: [m.contrastive_loss(dict(zip(MODALITIES, x, strict=True)), ids=IDS)],
        ROWS,
    ),
    "shared, siglip": (
        lambda: SharedRepresentation(MODALITIES, 16, loss="siglip"),
        lambda m, *x: [m.contrastive_loss(dict(zip(MODALITIES, x, strict=True)), ids=IDS)],
        ROWS,
    ),
    "relation": (
        lambda: RelationLearning(E, H),
        lambda m, regions, words: m(regions, boxes().to(regions.dtype), words, span=PADDED, return_map=True),
        (randn(B, SK, E), randn(B, SQ, E, seed=1)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fused_equals_eager_in_values_and_gradients(case):
    make, call, inputs = CASES[case]

    def draw(seed):
        fused = randomise(make(), seed)
        eager = copy.deepcopy(fused)
        set_attention(eager, "eager")
        exact = copy.deepcopy(eager).double()
        return (
            results_and_gradients(fused, call, inputs),
            results_and_gradients(exact, call, [t.double() for t in inputs]),
            results_and_gradients(eager, call, inputs),
        )

    assert_draws_within_budget(draw)


@pytest.mark.parametrize("attention", ["fused", "eager"])
def test_autocast_runs_the_attention_in_bfloat16(attention):
    module = randomise(CrossAttention(E, H, attention=attention))
    x, context = randn(B, SQ, E), randn(B, SK, E, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, context)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x, context), rtol=0.05, atol=0.05)
    out.sum().backward()
    assert module.in_proj_weight.grad.isfinite().all()


def test_the_choice_changes_at_any_time_and_leaves_the_weights_alone():
    module = GatedCrossAttention(E, H)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    set_attention(module, "eager")
    assert module.cross_attention.attention == "eager"
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="attention: expected"):
        set_attention(module, "flash")


@pytest.mark.parametrize("attention", ["fused", "eager"])
def test_dropout_acts_in_training_alone(attention):
    module = randomise(CrossAttention(E, H, dropout=0.5, attention=attention))
    x = randn(B, SQ, E)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


# --- contexts and words that are projected once


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_projected_context_is_the_context(batch_first, bias):
    layers = [randomise(CrossAttention(e, H, kdim=24, vdim=24, bias=bias, batch_first=batch_first)) for e in (E, 64)]
    context = randn(B, SK, 24, seed=1) if batch_first else randn(SK, B, 24, seed=1)
    projected = ContextKV.project(context, layers, span=PADDED)
    for layer, kv in zip(layers, projected, strict=True):
        assert kv.k.shape == kv.v.shape == (B, H, SK, layer.embed_dim // H)
        x = randn(B, SQ, layer.embed_dim) if batch_first else randn(SQ, B, layer.embed_dim)
        torch.testing.assert_close(layer(x, kv), layer(x, context, span=PADDED))


def test_a_projected_context_has_the_same_gradients():
    layer, context = randomise(CrossAttention(E, H)), randn(B, SK, E, seed=1)

    def direct(module, x, context):
        return [module(x, context)]

    def projected(module, x, context):
        return [module(x, *ContextKV.project(context, [module]))]

    expected = results_and_gradients(layer, direct, (randn(B, SQ, E), context))
    for name, value in results_and_gradients(layer, projected, (randn(B, SQ, E), context)).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("form", ["mean", "full", "keys"])
def test_beams_share_a_context(form):
    beams = 4
    layer, context = randomise(CrossAttention(E, H)), randn(B, SK, E, seed=1)
    x = randn(B * beams, SQ, E)
    (kv,) = ContextKV.project(context, [layer], span=PADDED)
    shared, shared_map = layer(x, kv, return_map=form)
    repeated = context.repeat_interleave(beams, 0)
    span = ff.KeySpan.lengths(torch.tensor([SK, 4, 1]).repeat_interleave(beams))
    expected, expected_map = layer(x, repeated, span=span, return_map=form)
    if form == "keys":
        expected_map = expected_map.view(B, beams, SK).sum(1)
    torch.testing.assert_close(shared, expected)
    torch.testing.assert_close(shared_map, expected_map)


def test_beams_keep_their_own_spans_and_a_common_bias():
    beams = 2
    layer, context = randomise(CrossAttention(E, H)), randn(B, SK, E, seed=1)
    x, (kv,) = randn(B * beams, SQ, E), ContextKV.project(context, [layer])
    repeated = context.repeat_interleave(beams, 0)
    for span in (ff.KeySpan.causal(SQ, SK), lengths(*range(1, 1 + B * beams)) & ff.KeySpan.window(SQ, SK, 3, 0)):
        torch.testing.assert_close(layer(x, kv, span=span), layer(x, repeated, span=span))
    bias = randn(B, H, 1, SK, seed=2)
    torch.testing.assert_close(layer(x, kv, bias=bias), layer(x, repeated, bias=bias.repeat_interleave(beams, 0)))
    with pytest.raises(ValueError, match="bias: expected it to be one for all queries"):
        layer(x, kv, bias=randn(1, H, SQ, SK))


def test_words_decoded_one_by_one_see_what_words_at_once_see():
    layer = randomise(CrossAttention(E, H))
    x = randn(B, SQ, E)
    expected = layer(x, span=ff.KeySpan.causal(SQ, SQ))
    cache = KVCache()
    steps = [layer(x[:, i : i + 1], cache=cache) for i in range(SQ)]
    assert len(cache) == SQ
    torch.testing.assert_close(torch.cat(steps, 1), expected)


def test_a_reordered_cache_is_the_other_rows_past():
    layer, rows = randomise(CrossAttention(E, H)), torch.tensor([2, 2, 0])
    x, last = randn(B, SQ, E), randn(B, 1, E, seed=1)
    cache = KVCache()
    layer(x, span=ff.KeySpan.causal(SQ, SQ), cache=cache)
    cache.reorder(rows)
    expected = layer(torch.cat([x[rows], last], 1), span=ff.KeySpan.causal(SQ + 1, SQ + 1))[:, -1:]
    torch.testing.assert_close(layer(last, cache=cache), expected)


# --- what each module promises


def test_a_new_gated_layer_is_the_identity_and_can_learn():
    module = GatedCrossAttention(E, H, 24)
    x = randn(B, SQ, E)
    out = module(x, randn(B, SK, 24, seed=1), span=MEDIA)
    assert torch.equal(out, x)
    (out * randn(B, SQ, E, seed=2)).sum().backward()
    assert (module.attention_gate.grad != 0).all()
    assert module.mlp_gate.grad != 0


def test_words_see_the_latest_picture_only():
    module, x = randomise(GatedCrossAttention(E, H)), randn(B, SQ, E)
    media = randn(B, SK, E, seed=1)
    other = media.clone()
    other[:, 5:] += 1.0  # the second picture, which words 5 and 6 look at
    before, after = module(x, media, span=MEDIA), module(x, other, span=MEDIA)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()
    # Words before the first picture see nothing: only the mlp touches them.
    torch.testing.assert_close(before[:, :2], module(x, 0 * media)[:, :2])


def test_joint_attention_is_attention_over_all_streams():
    module = JointAttention((E, E), E, H)
    for stream in (module.in_proj[1], module.out_proj[1]):
        own = module.in_proj[0] if stream is module.in_proj[1] else module.out_proj[0]
        stream.load_state_dict(own.state_dict())
    single = CrossAttention(E, H)
    weights = {"in_proj_weight": module.in_proj[0].weight, "in_proj_bias": module.in_proj[0].bias}
    out_proj = {f"out_proj.{name}": value for name, value in module.out_proj[0].state_dict().items()}
    single.load_state_dict(weights | out_proj)
    text, image = randn(B, SQ, E), randn(B, SK, E, seed=1)
    torch.testing.assert_close(torch.cat(module([text, image]), 1), single(torch.cat([text, image], 1)))


def test_joint_maps_cover_all_streams_and_hide_padding():
    module = JointAttention((16, 24), E, H)
    streams = randn(B, SQ, 16), randn(B, SK, 24, seed=1)
    spans = (None, PADDED)
    outs, maps = module(streams, spans, return_map=True)
    for out, plain in zip(outs, module(streams, spans), strict=True):
        torch.testing.assert_close(out, plain)
    for stream, weights in zip(streams, maps, strict=True):
        assert weights.shape == (B, stream.shape[1], SQ + SK)
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, stream.shape[1]))
        assert not weights[1, :, SQ + 4 :].any()


def test_pooling_ignores_padding():
    module, context = randomise(AttentionPooler(E, H, 5)), randn(1, SK, E)
    padded = torch.cat([context, randn(1, 6, E, seed=1)], 1)
    torch.testing.assert_close(module(padded, span=lengths(SK)), module(context))
    assert module(context).shape == (1, 5, E)


def test_shared_features_are_unit_vectors_of_any_modality():
    module = SharedRepresentation(MODALITIES, 16)
    vectors = module({"text": randn(5, 3, 20), "audio": randn(7, 8)})
    assert {name: tuple(v.shape) for name, v in vectors.items()} == {"text": (5, 3, 16), "audio": (7, 16)}
    torch.testing.assert_close(vectors["text"].norm(dim=-1), torch.ones(5, 3))
    assert module.logit_scale.item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_three_modalities_give_the_mean_over_pairs(loss):
    module = SharedRepresentation(MODALITIES, 16, loss=loss)
    features = dict(zip(MODALITIES, ROWS, strict=True))
    pairs = [("image", "text"), ("image", "audio"), ("text", "audio")]
    single = [module.contrastive_loss({a: features[a], b: features[b]}) for a, b in pairs]
    torch.testing.assert_close(module.contrastive_loss(features), torch.stack(single).mean())


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_training_brings_pairs_together(loss):
    torch.manual_seed(0)
    module = SharedRepresentation({"image": 12, "text": 20}, 16, loss=loss)
    features = {"image": randn(8, 12), "text": randn(8, 20, seed=1)}
    optimiser = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        module.contrastive_loss(features).backward()
        optimiser.step()
    vectors = module(features)
    assert ff.recall_at_k(vectors["image"], vectors["text"], ks=(1,))["i2t"][1] == 1.0


def test_relations_start_from_content_alone_and_learn_geometry():
    module = RelationLearning(E, H)
    regions, words = randn(B, SK, E), randn(B, SQ, E, seed=1)
    here, elsewhere = (module(regions, b, words) for b in (boxes(), boxes().roll(1, 1)))
    assert torch.equal(here.words, elsewhere.words)
    (here.regions.square().sum() + here.words.square().sum()).backward()
    for network in (module.pair_bias, module.place_bias):
        assert network[-1].weight.grad.abs().sum() > 0


def test_relation_maps_are_probabilities_over_real_regions():
    module = randomise(RelationLearning(E, H))
    result = module(randn(B, SK, E), boxes(), randn(B, SQ, E, seed=1), span=PADDED, return_map=True)
    assert result.region_map.shape == (B, SK, SK)
    assert result.word_map.shape == (B, SQ, SK)
    for weights in (result.region_map, result.word_map):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert not weights[1, :, 4:].any()


def test_geometry_tells_left_from_right_and_is_blind_to_place_and_scale():
    pair = torch.tensor([[[0.1, 0.1, 0.2, 0.2], [0.5, 0.1, 0.7, 0.2]]])
    geometry = pair_geometry(pair)
    assert geometry[0, 0, 1, 0] > 0 > geometry[0, 1, 0, 0]
    assert geometry[0, 0, 1, 1] == geometry[0, 1, 0, 1] == 0
    assert geometry[0, 0, 1, 2] == pytest.approx(0.6931, abs=1e-3)
    torch.testing.assert_close(pair_geometry(pair / 2 + 0.25), geometry)
    assert pair_geometry(torch.zeros(1, 2, 4)).isfinite().all()  # boxes without an extent


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossAttention(32, 5), "num_heads"),
        (lambda: CrossAttention(32, 4, dropout=1.0), "dropout"),
        (lambda: CrossAttention(32, 4)(randn(2, 3, 16)), r"query: .*32.*\(2, 3, 16\)"),
        (lambda: CrossAttention(32, 4)(randn(3, 32)), "query"),
        (lambda: CrossAttention(32, 4, kdim=8, vdim=8)(randn(2, 3, 32)), "context"),
        (lambda: CrossAttention(32, 4, kdim=8, vdim=4)(randn(2, 3, 32), randn(2, 3, 8)), "value"),
        (lambda: ContextKV.project(randn(2, 3, 32), []), "layers"),
        (lambda: ContextKV.project(randn(2, 3, 16), [CrossAttention(32, 4)]), "context"),
        (
            lambda: CrossAttention(32, 4)(
                randn(3, 3, 32), *ContextKV.project(randn(2, 3, 32), [CrossAttention(32, 4)])
            ),
            "query: expected a multiple of the context's 2 rows",
        ),
        (lambda: JointAttention((), 32, 4), "dims"),
        (lambda: JointAttention((8, 8), 32, 4)([randn(2, 3, 8)]), "streams"),
        (lambda: JointAttention((8,), 32, 4)([randn(2, 3, 8)], []), "spans"),
        (lambda: AttentionPooler(32, 4, 0), "num_queries"),
        (lambda: SharedRepresentation({"image": 8}, 8), "dims"),
        (lambda: SharedRepresentation(MODALITIES, 8, loss="triplet"), "loss"),
        (lambda: SharedRepresentation(MODALITIES, 8).contrastive_loss({"text": randn(2, 20)}), "features"),
        (lambda: RelationLearning(32, 4)(randn(2, 3, 32), randn(2, 4, 4), randn(2, 5, 32)), "boxes"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_modality_is_named():
    with pytest.raises(KeyError, match="smell"):
        SharedRepresentation(MODALITIES, 8)({"smell": randn(2, 3)})
