"""Patchout: in training whole rows and columns of patches are left out, the same in a step for any micro-batch."""

import signal

import pytest
import torch
from small_runs import assert_same_run, make_config, make_file, on_step
from small_steps import catch_gradient, make_stepper
from transformers import ASTConfig, ASTForAudioClassification

from egoaudio.config.train import ModelConfig
from egoaudio.errors import ConfigurationError
from egoaudio.models import check_sizes, create_model
from egoaudio.models.dropout import Patchout, place_micro_batch
from egoaudio.training import train

GRID = (12, 9)  # of 98 x 128 in patches of 16 every 10


def make_ast(patchout, feature_shape=(98, 128), dropout=0.0, **options):
    torch.manual_seed(0)
    config = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=dropout, patchout=patchout)
    model = create_model("ast", 4, feature_shape, config, **options)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)  # positions begin as zeros, which would hide whose they are
    return model


def embeddings_of(model):
    return model.network.audio_spectrogram_transformer.embeddings


def test_what_stays_are_transformers_own_tokens_of_those_patches():
    model, features = make_ast(0.3), torch.randn(3, 98, 128)
    theirs = ASTForAudioClassification(ASTConfig(**model.network.config.to_dict()))
    theirs.load_state_dict(model.network.state_dict())
    place_micro_batch(model.modules(), seed=5, first_clip=0)
    tokens = embeddings_of(model)(features)
    expected = theirs.audio_spectrogram_transformer.embeddings(features)
    kept = embeddings_of(model).patchout.kept()
    assert len(kept) == (12 - 4) * (9 - 3) and tokens.shape == (3, 2 + len(kept), 24)
    torch.testing.assert_close(tokens, torch.cat((expected[:, :2], expected[:, 2 + kept]), dim=1))
    assert not torch.allclose(tokens[:, 2:], expected[:, 2 : 2 + len(kept)])  # or the first ones would pass for them


def test_whole_rows_and_columns_go_each_as_often_as_any_other():
    layer, lost = Patchout(0.3, GRID), torch.zeros(GRID)
    for seed in range(300):
        layer.seed = seed
        left_out = torch.ones(GRID[0] * GRID[1])
        left_out[layer.kept()] = 0
        left_out = left_out.reshape(GRID)
        rows, columns = left_out.all(dim=1), left_out.all(dim=0)
        assert rows.sum() == 4 and columns.sum() == 3
        assert torch.equal(left_out.bool(), rows[:, None] | columns)
        lost += left_out
    assert abs(lost / 300 - (1 - (8 / 12) * (6 / 9))).max() < 0.12


def test_the_seed_of_the_step_decides_and_the_slice_does_not():
    layer = Patchout(0.3, GRID)
    kept = {}
    for seed in range(8):
        for first_clip in (0, 7):
            place_micro_batch(layer.modules(), seed=seed, first_clip=first_clip)
            kept.setdefault(seed, []).append(tuple(layer.kept().tolist()))
    assert all(one == other for one, other in kept.values())
    assert len({one for one, _ in kept.values()}) == 8


@pytest.mark.parametrize(
    "grid, share, expected",
    [((1, 1), 0.9, 1), ((1, 5), 0.5, 3), ((12, 1), 0.3, 8), ((3, 2), 0.1, 6), ((12, 28), 0.99, 1)],
)
def test_one_patch_always_stays(grid, share, expected):
    assert len(Patchout(share, grid).kept()) == expected


def test_tokens_that_are_left_out_are_not_computed():
    model, seen = make_ast(0.5), []
    layers = model.network.audio_spectrogram_transformer.layers
    layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    model(torch.randn(2, 98, 128))
    model.eval()(torch.randn(2, 98, 128))
    assert seen == [2 + 6 * 5, 2 + 12 * 9]


def test_evaluation_hears_everything():
    with_, without, features = make_ast(0.4).eval(), make_ast(0.0).eval(), torch.randn(2, 98, 128)
    assert torch.equal(with_(features), without(features))
    with_.train()
    assert not torch.allclose(with_(features), without(features), atol=1e-3)


def test_a_step_in_slices_is_the_step_of_the_whole_batch():
    found = [catch_gradient(make_stepper("ast", dropout=0.2, patchout=0.5, micro_batch_size=size)) for size in (64, 7)]
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-5
    without = catch_gradient(make_stepper("ast", dropout=0.2, micro_batch_size=64))
    assert float((without - found[0]).norm() / found[0].norm()) > 0.05


def test_recomputed_activations_are_those_of_the_same_patches():
    found, features = [], torch.randn(3, 98, 128)
    for checkpointing in (False, True):
        model = make_ast(0.3, dropout=0.2, activation_checkpointing=checkpointing)
        place_micro_batch(model.modules(), seed=3, first_clip=0)
        model(features).square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "feature_shape, num_tokens", [((3 * 98, 128), 2 + 8 * 20), ((3 * 8, 128), 2 + 8 * 1), ((8, 20), 2 + 1)]
)
def test_clips_with_context_and_short_ones_can_be_trained_on(feature_shape, num_tokens):
    model = make_ast(0.3, feature_shape)
    seen = []
    embeddings_of(model).register_forward_hook(lambda _, __, tokens: seen.append(tokens.shape[1]))
    model(torch.randn(2, *feature_shape)).sum().backward()
    assert seen == [num_tokens]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_run_that_is_stopped_leaves_out_the_same_patches(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")
    data = make_file(tmp_path / "ego.h5", features={"logmel": (24, 32)})
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 8, "stride": 4}
    config = make_config(model="ast", patchout=0.3, dropout=0.1, **sizes)
    train.train(data, tmp_path / "whole", config)
    for stop in (2, 5):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            train.train(data, tmp_path / "stopped", config)
    train.train(data, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_share_that_leaves_nothing_or_has_no_effect_is_refused():
    with pytest.raises(ConfigurationError, match="`patchout=1`: expected less than 1, or no patch is left"):
        make_ast(1.0)
    with pytest.raises(ConfigurationError, match="`patchout=0.2`: cnn-small has its own, only ast can"):
        check_sizes(ModelConfig(model="cnn-small", patchout=0.2))
