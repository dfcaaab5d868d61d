"""The networks: equal to their plain definitions, for any clip length, and clear about what does not fit."""

import numpy as np
import pytest
import torch
from torch import nn
from yamnet_reference import make_bundle, random_tensors

from egoaudio.config.train import ModelConfig
from egoaudio.errors import CheckpointError, ConfigurationError
from egoaudio.models import check_feature, check_sizes, create_model
from egoaudio.models.dropout import ClipDropout, place_micro_batch, replace_dropout

SMALL_AST = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=0.0, patchout=0.0)


def plain_cnn(num_frames, num_bins, num_classes):
    """The paper's network as people write it: the oracle."""
    layers = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (num_frames // 8) * (num_bins // 8), num_classes))


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


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
        place_micro_batch(model, seed=3, first_clip=0)
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


# ----------------------------------------------------------------------------------------------- pretrained


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


# ----------------------------------------------------------------------------------------------- what does not fit


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
            "ast wants logmel; this file has spectrogram, mfcc: rebuild with `features=.'logmel',.`",
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
            "cnn wants spectrogram.*: rebuild with `features=.'spectrogram',.` or give `feature='mfcc'`",
        ),
        ("cnn", ("mfcc",), "logmel", "cnn wants logmel; this file has mfcc: rebuild with `features=.'logmel',.`"),
        ("cnn", ("waveform",), None, "this file has waveform: rebuild with `features=.'spectrogram',.`"),
        (
            "yamnet",
            ("logmel",),
            None,
            "yamnet wants yamnet or waveform; this file has logmel: rebuild with `features=.'yamnet',.`",
        ),
        (
            "yamnet",
            ("logmel", "waveform"),
            None,
            "yamnet wants .*: rebuild with `features=.'yamnet',.` or give `feature='waveform'`",
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
            "cnn-small wants logmel or spectrogram or mfcc; this file has yamnet: rebuild with `features=.'logmel',.`",
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


# ----------------------------------------------------------------------------------------------- dropout


def test_dropout_masks_belong_to_clips_not_to_slices():
    layer, x = ClipDropout(0.4, layer=2), torch.ones(6, 50, 8)
    place_micro_batch(layer, seed=9, first_clip=0)
    whole = layer(x)
    parts = []
    for start in (0, 2, 4):
        place_micro_batch(layer, seed=9, first_clip=start)
        parts.append(layer(x[start : start + 2]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert abs(float((whole == 0).float().mean()) - 0.4) < 0.03
    assert sorted(whole.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])


def test_dropout_differs_between_clips_layers_and_steps():
    x = torch.ones(2, 200)
    masks = []
    for layer, seed in ((0, 1), (1, 1), (0, 2)):
        module = ClipDropout(0.5, layer=layer)
        place_micro_batch(module, seed=seed, first_clip=0)
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
