"""The paper's network: equal to its plain definition in outputs and gradients."""

import pytest
import torch
from small_steps import gradients, relative_error
from torch import nn

from egoaudio.models import create_model


def plain_cnn(num_frames, num_bins, num_classes):
    """The paper's network as people write it: the oracle."""
    layers = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (num_frames // 8) * (num_bins // 8), num_classes))


@pytest.mark.parametrize("num_frames, num_bins", [(32, 1025), (32, 20), (98, 128), (9, 11), (8, 8)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_cnn_equals_the_papers_network_in_outputs_and_gradients(num_frames, num_bins, checkpointing):
    torch.manual_seed(0)
    plain = plain_cnn(num_frames, num_bins, 7)
    ours = create_model("cnn", 7, (num_frames, num_bins), activation_checkpointing=checkpointing)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    features, labels = torch.randn(5, num_frames, num_bins), (torch.rand(5, 7) < 0.3).float()
    for model, x in ((plain, features.unsqueeze(1)), (ours, features)):
        logits = model(x)
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        model.logits = logits.detach()
    torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients(ours), gradients(plain), strict=True):
        assert relative_error(mine, theirs) < 1e-5


def test_cnn_has_the_papers_number_of_parameters():
    model = create_model("cnn", 158, (32, 1025))
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 64 + 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + 64 * 4 * 128 * 158 + 158
