"""The small network: any clip length, number of bins and context, with frequency kept apart."""

import pytest
import torch
from small_steps import gradients

from egoaudio.models import create_model


def test_cnn_small_accepts_any_clip_length_with_the_same_weights():
    model = create_model("cnn-small", 5, (32, 1025)).eval()
    for num_frames in (1, 4, 32, 311):
        assert model(torch.randn(2, num_frames, 1025)).shape == (2, 5)


@pytest.mark.parametrize(
    "feature_shape, context_clips",
    [
        ((98, 128), 0),
        ((294, 128), 1),
        ((490, 128), 2),
        ((8, 128), 0),
        ((24, 128), 1),
        ((3, 20), 1),
        ((1, 1), 0),
        ((96, 1025), 1),
        ((998, 64), 0),
    ],
)
def test_cnn_small_fits_any_feature_with_any_context(feature_shape, context_clips):
    model = create_model("cnn-small", 158, feature_shape, context_clips=context_clips)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    model(torch.randn(2, *feature_shape)).sum().backward()
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients(model))


def test_cnn_small_tells_high_from_low_and_the_clip_from_its_context():
    torch.manual_seed(0)
    model = create_model("cnn-small", 4, (294, 128), context_clips=1).eval()
    low, high, before = (torch.zeros(1, 294, 128) for _ in range(3))
    low[:, 98:196, 20:30], high[:, 98:196, 90:100], before[:, :98, 20:30] = 30, 30, 30
    silent = model(torch.zeros(1, 294, 128))
    answers = [model(x) for x in (low, high, before)]
    assert all(
        (one - other).abs().max() > 0.01
        for one in [silent, *answers]
        for other in [silent, *answers]
        if one is not other
    )
