"""YAMNet with random weights: no file is needed."""

import copy

import numpy as np
import pytest
import torch
from yamnet_reference import make_bundle, random_tensors, reference_logits

from egoaudio.audio.yamnet_features import NUM_BANDS, yamnet_logmel
from egoaudio.models.dropout import place_micro_batch
from egoaudio.models.sound_features import YamnetLogMel
from egoaudio.models.yamnet import PATCH_FRAMES, SILENCE, YAMNet
from egoaudio.models.yamnet_weights import fill_trunk, read_published


def noise(num_clips, num_samples, seed=0):
    """Return white noise, float32 (num_clips, num_samples)."""
    return (0.1 * np.random.default_rng(seed).standard_normal((num_clips, num_samples))).astype(np.float32)


def test_torch_hears_what_numpy_hears():
    clips = noise(3, 16000)
    torch.testing.assert_close(
        YamnetLogMel()(torch.from_numpy(clips)), torch.from_numpy(yamnet_logmel(clips, 16000)), atol=1e-4, rtol=0
    )


# ------------------------------------------------------------------------------------------------ network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A YAMNet of 5 classes whose trunk is random but alive, from a bundle: its reader is tested beside."""
    torch.manual_seed(0)
    model = YAMNet(5)
    fill_trunk(model, read_published(make_bundle(tmp_path_factory.mktemp("yamnet"), random_tensors())))
    return model


@pytest.fixture
def logmel():
    """Six clips of 98 frames, float32 (6, 98, 64)."""
    return torch.from_numpy(yamnet_logmel(noise(6, 16000), 16000))


def test_a_patch_of_96_frames_is_the_network_with_batch_norm_and_tensorflows_padding(model, logmel):
    tensors = random_tensors()
    tensors[54, "kernel"], tensors[54, "bias"] = (
        model.classifier.weight.detach().numpy().T,
        model.classifier.bias.detach().numpy(),
    )
    expected = reference_logits(tensors, logmel[:, :96])
    assert expected.std(dim=0).min() > 1e-4  # alive: clips differ
    torch.testing.assert_close(model(logmel[:, :96]).double(), expected, atol=1e-5, rtol=1e-4)


def test_it_has_the_published_number_of_weights():
    assert (
        sum(parameter.numel() for parameter in YAMNet(521).parameters()) == 3_729_481
    )  # 3.7 M; batch norm's are folded in


@pytest.mark.parametrize("frames", [1, 40, 95])
def test_a_short_clip_is_followed_by_silence(model, logmel, frames):
    padded = torch.full((6, PATCH_FRAMES, NUM_BANDS), SILENCE)
    padded[:, :frames] = logmel[:, :frames]
    torch.testing.assert_close(model(logmel[:, :frames]), model(padded))


@pytest.mark.parametrize("frames", [96, 97, 98, 127, 128, 298])
def test_a_long_clip_is_one_picture_whose_mean_is_taken(model, frames):
    long = torch.from_numpy(yamnet_logmel(noise(2, 160 * (frames - 1) + 400), 16000))
    maps = []
    hook = model.trunk[-1].register_forward_hook(lambda module, inputs, output: maps.append(output))
    embedding = model.embed(long)
    hook.remove()
    assert maps[0].shape == (2, 1024, frames // 32, 2)
    torch.testing.assert_close(embedding, maps[0].mean(dim=(2, 3)))


def test_a_long_clip_is_sampled_where_its_patches_are(model):
    """The end of a long clip gives the maps that it gives where the clip begins a column of the last map later."""
    long = torch.from_numpy(yamnet_logmel(noise(1, 160 * 799 + 400), 16000))
    maps = []
    hook = model.trunk[6].register_forward_hook(lambda module, inputs, output: maps.append(output))
    model.embed(long)
    model.embed(long[:, 32:])
    hook.remove()
    whole, shifted = maps
    assert whole.shape[2] == shifted.shape[2] + 2
    torch.testing.assert_close(whole[:, :, 14:], shifted[:, :, 12:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "frames, context_clips, first, stop",
    [(294, 1, 3, 6), (490, 2, 6, 9), (298, 1, 3, 6), (24, 1, 0, 1), (150, 1, 2, 3), (686, 3, 9, 12)],
)
def test_with_context_the_clips_own_part_stands_beside_the_whole(model, frames, context_clips, first, stop):
    own = YAMNet(5, context_clips=context_clips)
    own.trunk.load_state_dict(model.trunk.state_dict())
    maps = []
    hook = own.trunk[-1].register_forward_hook(lambda module, inputs, output: maps.append(output.mean(dim=3)))
    long = torch.from_numpy(yamnet_logmel(noise(2, 160 * (frames - 1) + 400), 16000))
    embedding = own.embed(long)
    hook.remove()
    assert own(long).shape == (2, 5)
    part, mean = embedding.split(1024, dim=1)
    torch.testing.assert_close(part, maps[0][:, :, first:stop].mean(dim=2))
    torch.testing.assert_close(mean, maps[0].mean(dim=2))


def test_a_waveform_is_heard_as_its_log_mel(model):
    clips = noise(3, 16000)
    torch.testing.assert_close(
        model(torch.from_numpy(clips)), model(torch.from_numpy(yamnet_logmel(clips, 16000))), atol=1e-4, rtol=1e-4
    )


# ------------------------------------------------------------------------------------------------ training


def gradients(model, x, slices, seed=1):
    """Return the gradients of the sum of squared logits, taken in slices as the trainer does."""
    model.zero_grad(set_to_none=True)
    first = 0
    for part in x.split(slices):
        place_micro_batch(model.modules(), seed, first)
        model(part).square().sum().backward()
        first += len(part)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("freeze", [False, True])
def test_slices_of_a_batch_give_the_gradients_of_the_whole(model, logmel, freeze):
    own = YAMNet(5, dropout=0.3, freeze=freeze)
    own.load_state_dict(model.state_dict())
    whole = gradients(own.train(), logmel, 6)
    for size in (4, 1):
        for name, gradient in gradients(own, logmel, size).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-5 * whole[name].abs().max().item(), rtol=1e-3)


def test_activation_checkpointing_changes_no_gradient(model, logmel):
    own = copy.deepcopy(model).train()
    plain = gradients(own, logmel, 6)
    own.enable_activation_checkpointing()
    assert own.activation_checkpointing
    again = gradients(own, logmel, 6)
    assert len(again) == len(plain) == 56
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name])


def test_a_frozen_trunk_stays_as_it_is_and_keeps_no_graph(model, logmel):
    own = YAMNet(5, freeze=True)
    own.load_state_dict(model.state_dict())
    own.train()
    assert own.embed(logmel).grad_fn is None
    assert [len(parameters) for parameters, _ in own.parameter_groups()] == [2, 54]
    assert set(gradients(own, logmel, 6)) == {"classifier.weight", "classifier.bias"}
    before = copy.deepcopy(own.state_dict())
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.1, weight_decay=0.1)
    own(logmel).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in own.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_training_and_evaluation_are_one_network_without_dropout(model, logmel):
    own = copy.deepcopy(model)
    torch.testing.assert_close(own.train()(logmel), own.eval()(logmel))


def test_it_learns(model):
    """Noise and sines are told apart after a few steps of the whole network."""
    own = copy.deepcopy(model).train()
    clips = noise(6, 16000)
    clips[::2] = np.sin(np.arange(16000) * np.array([[0.1], [0.2], [0.4]]))
    logmel, labels = torch.from_numpy(yamnet_logmel(clips, 16000)), torch.tensor([1.0, 0.0]).repeat(3)
    optimizer = torch.optim.AdamW(own.parameters(), lr=2e-4)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(own(logmel)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
