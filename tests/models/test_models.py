"""All networks: clips of any length, activation checkpointing, and input that does not fit."""

import pytest
import torch
from small_steps import gradients
from yamnet_reference import make_bundle, random_tensors

from egoaudio.config.train import ModelConfig
from egoaudio.errors import CheckpointError, ConfigurationError
from egoaudio.models import check_feature, check_sizes, create_model
from egoaudio.models.dropout import place_micro_batch

SMALL_AST = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=0.0, patchout=0.0)


@pytest.mark.parametrize(
    "name, feature_shape",
    [("cnn", (4, 1025)), ("cnn", (1, 20)), ("cnn-small", (4, 1025)), ("ast", (8, 128)), ("ast", (98, 128))],
)
def test_clips_of_a_tenth_of_a_second_can_be_trained_on(name, feature_shape):
    model = create_model(name, 3, feature_shape, SMALL_AST if name == "ast" else None)
    model(torch.randn(2, *feature_shape)).sum().backward()
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients(model))


@pytest.mark.parametrize("name", ["cnn", "cnn-small", "ast"])
def test_activation_checkpointing_changes_neither_gradients_nor_batch_norm(name, monkeypatch):
    monkeypatch.setattr("egoaudio.models.transformer.TOKENS_AT_ONCE", 3)
    config = ModelConfig(model=name, dropout=0.3, hidden_size=24, num_layers=2, num_heads=2)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = create_model(name, 4, (32, 40), config, activation_checkpointing=checkpointing)
        assert model.activation_checkpointing == checkpointing
        place_micro_batch(model.modules(), seed=3, first_clip=0)
        model(torch.randn(3, 32, 40)).square().sum().backward()
        results.append(gradients(model) + list(model.buffers()))
    for without, with_ in zip(*results, strict=True):
        torch.testing.assert_close(with_, without, rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_keeps_less_memory():
    kept = []
    for checkpointing in (False, True):
        model = create_model("ast", 4, (98, 128), SMALL_AST, activation_checkpointing=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            model(torch.randn(2, 98, 128))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize(
    "name, available, chosen, expected",
    [
        ("cnn", ("spectrogram", "mfcc"), None, "spectrogram"),
        ("cnn", ("spectrogram", "mfcc"), "mfcc", "mfcc"),
        ("cnn-small", ("logmel",), "logmel", "logmel"),
        ("ast", ("mfcc", "logmel"), None, "logmel"),
        ("ast-paper", ("spectrogram",), None, "spectrogram"),
    ],
)
def test_feature_that_fits(name, available, chosen, expected):
    assert check_feature(name, available, chosen) == expected


@pytest.mark.parametrize(
    "name, available, chosen, words",
    [
        (
            "ast",
            ("spectrogram", "mfcc"),
            None,
            "ast wants logmel; this file has spectrogram, mfcc: "
            "rebuild with `features=.'spectrogram', 'mfcc', 'logmel'.`",
        ),
        (
            "ast",
            ("spectrogram", "logmel"),
            "spectrogram",
            "ast wants logmel, not spectrogram; this file has spectrogram, logmel: give `feature='logmel'`",
        ),
        (
            "cnn",
            ("mfcc",),
            None,
            "cnn wants spectrogram.*: rebuild with `features=.'mfcc', 'spectrogram'.` or give `feature='mfcc'`",
        ),
        (
            "cnn",
            ("mfcc",),
            "logmel",
            "cnn wants logmel; this file has mfcc: rebuild with `features=.'mfcc', 'logmel'.`",
        ),
        (
            "cnn",
            ("waveform",),
            None,
            "this file has waveform: give `on_the_fly=True` or rebuild with `features=.'waveform', 'spectrogram'.`",
        ),
        (
            "yamnet",
            ("logmel",),
            None,
            "yamnet wants yamnet or waveform; this file has logmel: rebuild with `features=.'logmel', 'yamnet'.`"
            r" and `denoise.mode='none'` \(denoising costs it 4 to 6 points of mAP\)",
        ),
        (
            "yamnet",
            ("logmel", "waveform"),
            None,
            r"yamnet wants .*: rebuild with `features=.'logmel', 'waveform', 'yamnet'.` "
            r"and `denoise.mode='none'` \(denoising costs it 4 to 6 points of mAP\) or give "
            "`feature='waveform'`",
        ),
        (
            "yamnet",
            ("logmel", "yamnet"),
            "logmel",
            "yamnet wants yamnet or waveform, not logmel.*: give `feature='yamnet'`",
        ),
        (
            "cnn-small",
            ("yamnet",),
            None,
            "cnn-small wants logmel or spectrogram or mfcc; this file has yamnet: "
            "rebuild with `features=.'yamnet', 'logmel'.`",
        ),
        ("resnet", ("mfcc",), None, "`model='resnet'`: expected one of cnn, cnn-small, ast-paper, ast, yamnet"),
    ],
)
def test_feature_that_does_not_fit_is_refused_with_the_fix(name, available, chosen, words):
    with pytest.raises(ConfigurationError, match=words):
        check_feature(name, available, chosen)


@pytest.mark.parametrize(
    "shape, context_clips", [((98, 64), 0), ((16000,), 0), ((294, 64), 1), ((48000,), 1), ((8, 64), 0)]
)
def test_yamnet_takes_its_log_mel_or_waveforms_with_and_without_context(shape, context_clips):
    model = create_model("yamnet", 7, shape, context_clips=context_clips)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_yamnet_starts_from_published_weights_and_says_which_cannot_be_read(tmp_path):
    tensors = random_tensors()
    model = create_model(
        "yamnet",
        7,
        (98, 64),
        ModelConfig(model="yamnet", pretrained=str(make_bundle(tmp_path, tensors)), freeze=True, dropout=0.1),
    )
    assert model.freeze and model.dropout.p == 0.1
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert float(model.trunk[0].weight.abs().max()) > 1  # batch norm is folded in
    with pytest.raises(CheckpointError, match=f"{tmp_path}/gone: cannot be read .*the README says how to get them"):
        create_model("yamnet", 7, (98, 64), ModelConfig(model="yamnet", pretrained=f"{tmp_path}/gone"))


@pytest.mark.parametrize(
    "name, shape, config, words",
    [
        ("ast", (98, 12), SMALL_AST, "a patch of 16 bins does not fit into a feature of 12"),
        (
            "ast",
            (98, 128),
            ModelConfig(model="ast", hidden_size=25, num_heads=2),
            "`hidden_size=25` is not a multiple of `num_heads=2`",
        ),
        ("cnn", (32, 40), ModelConfig(pretrained="x"), "only ast and yamnet start from published weights"),
        ("cnn-small", (32, 40), ModelConfig(dropout=1.0), "`dropout=1`: expected less than 1"),
        ("cnn", (0, 40), None, "0 x 40"),
        ("yamnet", (98, 128), None, "yamnet on features of 128 bands: expected YAMNet's own 64"),
        ("yamnet", (0,), None, "yamnet on clips of 0 with 3 classes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, shape, config, words):
    with pytest.raises(ConfigurationError, match=words):
        create_model(name, 3, shape, config)


@pytest.mark.parametrize(
    "name, sizes, words",
    [
        (
            "cnn",
            {"dropout": 0.1},
            "`dropout=0.1`: cnn has its own, only cnn-small, ast and yamnet can be given another",
        ),
        ("cnn-small", {"dropout": 0.1, "hidden_size": 64}, "`hidden_size=64`: cnn-small has its own, only ast can"),
        ("ast-paper", {"stride": 10, "num_layers": 2}, "`num_layers=2`: ast-paper has its own"),
    ],
)
def test_sizes_without_effect_are_refused(name, sizes, words):
    with pytest.raises(ConfigurationError, match=words):
        check_sizes(ModelConfig(model=name, **sizes))
    check_sizes(ModelConfig(model="ast", **sizes))
    check_sizes(ModelConfig(model=name))
