"""Dropout: masks follow from step, layer and clip."""

import pytest
import torch
from torch import nn

from egoaudio.models import dropout
from egoaudio.models.dropout import ClipDropout, keep_uncompiled, place_micro_batch, replace_dropout


@pytest.mark.parametrize("elements_per_draw", [1, 1000, 10**6])  # one clip, two and all clips a draw
def test_dropout_masks_belong_to_clips_not_to_micro_batches(elements_per_draw, monkeypatch):
    monkeypatch.setitem(dropout.ELEMENTS_PER_DRAW, "cpu", elements_per_draw)
    layer, x = ClipDropout(0.4, layer=2), torch.ones(6, 50, 8)
    place_micro_batch(layer.modules(), seed=9, first_clip=0)
    whole = layer(x)
    parts = []
    for start in (0, 2, 4):
        place_micro_batch(layer.modules(), seed=9, first_clip=start)
        parts.append(layer(x[start : start + 2]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert abs(float((whole == 0).float().mean()) - 0.4) < 0.03
    assert sorted(whole.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])


def test_dropout_differs_between_clips_layers_and_steps():
    x = torch.ones(2, 200)
    masks = []
    for layer, seed in ((0, 1), (1, 1), (0, 2)):
        module = ClipDropout(0.5, layer=layer)
        place_micro_batch(module.modules(), seed=seed, first_clip=0)
        masks += list(module(x))
    for first in range(len(masks)):
        for second in range(first):
            assert not torch.equal(masks[first], masks[second])


def test_dropout_does_nothing_in_evaluation_and_is_put_in_place_of_torchs():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    replace_dropout(model)
    assert [(module.p, module.layer) for module in model.modules() if isinstance(module, ClipDropout)] == [
        (0.2, 0),
        (0.5, 1),
    ]
    x = torch.randn(4, 3)
    assert torch.equal(model.eval()[0](x), x)


def test_a_compiled_model_is_compiled_once_for_all_steps():
    """A draw that the compiler saw would be compiled anew for each step's seed, and mean less and less."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = torch.nn.Sequential(torch.nn.Linear(6, 6), ClipDropout(0.5, 0), torch.nn.Linear(6, 6))
    x, expected, counts = torch.rand(4, 6), [], []
    for seed in range(6):
        place_micro_batch(model.modules(), seed, 0)
        expected.append(model(x))
    keep_uncompiled(model)
    computed = torch.compile(model, backend=backend)
    for seed in range(6):
        place_micro_batch(model.modules(), seed, 0)
        torch.testing.assert_close(computed(x), expected[seed], rtol=0, atol=0)
        counts.append(len(compiled))
    assert counts[0] > 0 and counts == [counts[0]] * 6
