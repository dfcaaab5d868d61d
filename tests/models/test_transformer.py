"""The Audio Spectrogram Transformer: equal to transformers' own, in the paper's sizes, or with published weights."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from small_steps import relative_error
from torch import nn

from egoaudio.config.train import ModelConfig
from egoaudio.errors import ConfigurationError
from egoaudio.models import check_sizes, create_model
from egoaudio.models.dropout import ClipDropout

SMALL_AST = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=0.0, patchout=0.0)


def test_ast_is_made_for_the_clips_own_number_of_frames():
    model = create_model("ast", 4, (98, 128), SMALL_AST)
    positions = model.network.audio_spectrogram_transformer.embeddings.position_embeddings
    assert positions.shape == (1, 2 + 12 * 9, 24)
    assert model.network.config._attn_implementation == "sdpa"


def test_ast_begins_with_gradients_of_a_size():
    """Zeros, as transformers begins with, give the special tokens a gradient thousands of times the others'."""
    torch.manual_seed(0)
    model = create_model("ast", 4, (98, 128), SMALL_AST)
    model(torch.randn(8, 98, 128)).square().mean().backward()
    embeddings = model.network.audio_spectrogram_transformer.embeddings
    special, patches = embeddings.cls_token, embeddings.patch_embeddings.projection.weight
    assert special.grad.norm() < 100 * patches.grad.norm()
    assert not torch.equal(special, embeddings.distillation_token)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tokens_at_once", [7, 2048])
def test_ast_equals_transformers_own_in_outputs_and_gradients(checkpointing, tokens_at_once, monkeypatch):
    from transformers import ASTConfig, ASTForAudioClassification

    monkeypatch.setattr("egoaudio.models.transformer.TOKENS_AT_ONCE", tokens_at_once)
    torch.manual_seed(0)
    ours = create_model("ast", 4, (48, 40), SMALL_AST, activation_checkpointing=checkpointing)
    for parameter in ours.parameters():
        parameter.data.normal_(std=0.2)  # transformers starts with zeros and ones, which hide what goes where
    theirs = ASTForAudioClassification(ASTConfig(**{**ours.network.config.to_dict(), "attn_implementation": "eager"}))
    theirs.load_state_dict(ours.network.state_dict())
    features = torch.randn(3, 48, 40)
    for model, logits in ((ours, ours(features)), (theirs, theirs(features).logits)):
        logits.square().sum().backward()
        model.logits = logits.detach()
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    for (name, mine), expected in zip(ours.network.named_parameters(), theirs.parameters(), strict=True):
        # The keys' bias moves every score of a query alike: its gradient is rounding.
        assert name.endswith("k_proj.bias") or relative_error(mine.grad, expected.grad) < 1e-5, name


def test_each_dropout_of_ast_is_applied_once_so_that_no_two_share_a_mask():
    model = create_model("ast", 4, (48, 40), SMALL_AST)
    dropouts, applied = [module for module in model.modules() if isinstance(module, ClipDropout)], []
    for module in dropouts:
        module.register_forward_hook(lambda module, *_: applied.append(module.layer))
    model(torch.randn(2, 48, 40))
    assert (
        applied == [module.layer for module in dropouts] == list(range(1 + 2 * 2))
    )  # embeddings, then attention and MLP of two layers


def test_ast_paper_has_the_papers_sizes():
    with torch.device("meta"):
        model = create_model("ast-paper", 158, (32, 1025))
    config = model.network.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (
        384,
        6,
        6,
        3072,
    )
    assert (
        config.hidden_act,
        config.hidden_dropout_prob,
        config.attention_probs_dropout_prob,
        config.initializer_range,
    ) == ("sigmoid", 0.4, 0.0, 0.02)
    assert (config.patch_size, config.time_stride, config.frequency_stride, config.max_length, config.num_mel_bins) == (
        16,
        1,
        1,
        32,
        1025,
    )
    assert model.network.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1] == 17172
    assert config._attn_implementation == "sdpa"
    assert {module.p for module in model.modules() if isinstance(module, ClipDropout)} == {0.4}
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small AST saved as transformers does, for clips of 130 frames, with weights that are nowhere zero."""
    from transformers import ASTConfig, ASTForAudioClassification

    torch.manual_seed(5)
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_length": 130,
        "num_labels": 11,
    }
    config = ASTConfig(**sizes, attn_implementation="eager")
    model = ASTForAudioClassification(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return model.eval(), folder


def test_pretrained_of_the_same_length_computes_what_was_published(published):
    theirs, folder = published
    ours = create_model("ast", 3, (130, 128), ModelConfig(model="ast", pretrained=str(folder))).eval()
    features = torch.randn(2, 130, 128)
    expected = theirs.audio_spectrogram_transformer(features).pooler_output
    torch.testing.assert_close(
        ours.network.audio_spectrogram_transformer(features).pooler_output, expected, rtol=1e-4, atol=1e-5
    )
    assert ours(features).shape == (2, 3)


@pytest.mark.parametrize("num_frames", [8, 98, 200])
def test_pretrained_positions_are_fitted_to_another_length(published, num_frames):
    theirs, folder = published
    ours = create_model("ast", 3, (num_frames, 128), ModelConfig(model="ast", pretrained=str(folder)))
    mine = ours.network.audio_spectrogram_transformer.embeddings.position_embeddings
    before = theirs.audio_spectrogram_transformer.embeddings.position_embeddings
    torch.testing.assert_close(mine[:, :2], before[:, :2])
    num_steps = (max(num_frames, 16) - 16) // 10 + 1
    assert mine.shape == (1, 2 + 12 * num_steps, 24)
    mine, before = mine[0, 2:].reshape(12, num_steps, 24), before[0, 2:].reshape(12, 12, 24)
    if num_steps <= 12:  # the middle, untouched
        start = (12 - num_steps) // 2
        torch.testing.assert_close(mine, before[:, start : start + num_steps])
    else:  # linear between the centres of the patches
        centres = (np.arange(num_steps) + 0.5) * 12 / num_steps - 0.5
        expected = np.apply_along_axis(lambda row: np.interp(centres, np.arange(12), row), 1, before.detach().numpy())
        np.testing.assert_allclose(mine.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    ours(torch.randn(2, num_frames, 128)).sum().backward()


def test_pretrained_sizes_win_over_the_options(published):
    config = ModelConfig(model="ast", pretrained=str(published[1]), hidden_size=768, num_layers=12, stride=3)
    assert create_model("ast", 3, (98, 128), config).network.config.hidden_size == 24


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: str(folder / "nowhere"), "there is no such folder"),
        (lambda folder: str(shutil.copy(__file__, folder / "ego.h5")), "there is no such folder"),
        (lambda folder: str(folder), "no AST weights"),
    ],
)
def test_pretrained_that_is_none_is_refused(tmp_path, make, words):
    with pytest.raises(ConfigurationError, match=words):
        create_model("ast", 3, (98, 128), ModelConfig(model="ast", pretrained=make(tmp_path)))


def test_pretrained_of_another_kind_is_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="not an Audio Spectrogram Transformer|no AST weights"):
        create_model("ast", 3, (98, 128), ModelConfig(model="ast", pretrained=str(tmp_path)))


def _cut(folder):
    os.truncate(folder / "model.safetensors", os.path.getsize(folder / "model.safetensors") // 2)


def _with(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _not_finite(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    next(value for name, value in weights.items() if "layer.1.intermediate" in name or "layers.1.mlp" in name)[0] = (
        float("nan")
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, r"no AST weights can be loaded from there \(.*\): give a folder with the config.json and the whole"),
        (_with(hidden_size="x"), r"\(.*hidden_size.*\): give a folder with the config.json and the whole"),
        (_with(num_attention_heads=0), "give a folder with the config.json and the whole"),
        (_with(hidden_size=48), "its weights have other shapes than its config.json says"),
        (_with(max_length=10**9), "its weights have other shapes than its config.json says"),
        (_with(num_hidden_layers=1), "says num_hidden_layers=1, and its weights have 2 layers: give both as they were"),
        (_with(num_hidden_layers=3), "says num_hidden_layers=3, and its weights have 2 layers"),
        (_with(num_hidden_layers=10**8), "says num_hidden_layers=100000000, and its weights have 2 layers"),
        (_not_finite, r"its weights layers\.1\..* hold values that are not finite: download them again"),
    ],
)
def test_pretrained_that_is_damaged_is_refused_in_a_line(published, tmp_path, damage, words):
    folder = tmp_path / "damaged"
    shutil.copytree(published[1], folder)
    damage(folder)
    with pytest.raises(ConfigurationError, match=words) as raised:
        create_model("ast", 3, (98, 128), ModelConfig(model="ast", pretrained=str(folder)))
    assert "\n" not in str(raised.value)


def test_pretrained_prints_nothing_and_leaves_transformers_as_talkative_as_before(published, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        create_model("ast", 3, (98, 128), ModelConfig(model="ast", pretrained=str(published[1])))
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    create_model("ast", 3, (98, 128), ModelConfig(model="ast", pretrained=str(published[1])))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "size", [{"hidden_size": 384}, {"num_layers": 6}, {"num_heads": 6}, {"patch_size": 8}, {"stride": 5}]
)
def test_sizes_beside_published_weights_are_refused_as_without_effect(size):
    ((name, value),) = size.items()
    with pytest.raises(ConfigurationError, match=f"`{name}={value}` has no effect with `pretrained`"):
        check_sizes(ModelConfig(model="ast", pretrained="weights", **size))
    check_sizes(ModelConfig(model="ast", pretrained="weights", dropout=0.3, patchout=0.2))
