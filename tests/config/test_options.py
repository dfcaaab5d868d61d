"""Options: checked on construction, kept as JSON, compared in words."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import egoaudio
from egoaudio.config.build import BUILD_PRESETS, BuildConfig, ClipConfig, FeatureConfig
from egoaudio.config.options import as_flags, differences, flags, from_flat, from_json, to_flat, to_json
from egoaudio.config.train import TRAIN_PRESETS, TrainConfig
from egoaudio.config.train_defaults import MODEL_DEFAULTS
from egoaudio.errors import ConfigurationError


@pytest.mark.parametrize("config_class", [BuildConfig, TrainConfig])
def test_every_option_has_a_name_of_its_own_and_help(config_class):
    names = [option.name for option, _ in flags(config_class)]
    assert len(names) == len(set(names))
    assert all(option.metadata["help"].endswith((".", ")")) for option, _ in flags(config_class))


@pytest.mark.parametrize("config", [BuildConfig(), BuildConfig(clips=ClipConfig(clip_seconds=0.1)), TrainConfig()])
def test_json_and_back_is_the_same(config):
    assert from_json(type(config), to_json(config)) == config
    assert from_flat(type(config), to_flat(config)) == config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"clip_seconds": 0.0}, "`clip_seconds=0.0`: expected more than 0"),
        ({"clip_seconds": float("nan")}, "expected a finite number"),
        ({"clip_seconds": "1"}, "`clip_seconds='1'`: expected float"),
        ({"n_fft": 2.5}, "`n_fft=2.5`: expected int"),
        ({"n_fft": True}, "`n_fft=True`: expected int"),
        ({"mode": "loud"}, "`mode='loud'`: expected one of nonstationary, stationary, none"),
        ({"features": ["mfcc", "chroma"]}, "`features='chroma'`: expected one of"),
        ({"features": []}, "`features` is empty"),
        ({"context_seconds": 0.5}, "`context_seconds=0.5` is less than `clip_seconds=1`"),
        ({"f_max_hz": 9000.0}, "`f_max_hz=9000`: expected more than `f_min_hz=0` and at most 8000"),
        ({"n_mfcc": 200}, "`n_mfcc=200` is more than `n_mels=128`"),
        ({"clip_secnds": 1.0}, "unknown options clip_secnds"),
        ({"clip_seconds": 0.00001}, "less than one sample"),
        (
            {"features": ["yamnet"], "sample_rate": 22050},
            "`features=('yamnet',)` at `sample_rate=22050`: YAMNet takes 16000 Hz and no other rate",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(values, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        from_flat(BuildConfig, values)


def test_nothing_is_left_to_train_on_without_a_training_share():
    with pytest.raises(ConfigurationError, match="`validation_fraction=1`: expected less than 1"):
        from_flat(TrainConfig, {"validation_fraction": 1.0})


def test_an_option_without_effect_is_refused():
    with pytest.raises(ConfigurationError, match="`amp_dtype='float16'` has no effect without `amp=True`"):
        from_flat(TrainConfig, {"amp_dtype": "float16"})


def test_differences_name_the_option_and_both_values():
    assert differences(BuildConfig(), BuildConfig(clips=ClipConfig(min_overlap_seconds=0.5))) == [
        "`min_overlap_seconds`: 0.0, now 0.5"
    ]
    assert differences(
        BuildConfig(), BuildConfig(clips=ClipConfig(context_seconds=2.0), features=FeatureConfig(features=("logmel",)))
    ) == [
        "`context_seconds`: not given, now 2.0",
        "`features`: spectrogram,mfcc,logmel, now logmel",
    ]
    assert differences(BuildConfig(), BuildConfig()) == []


def test_features_are_kept_in_the_files_order_whatever_was_typed():
    assert FeatureConfig(features=("mfcc", "spectrogram", "mfcc")).features == ("spectrogram", "mfcc")


@pytest.mark.parametrize("config_class, presets", [(BuildConfig, BUILD_PRESETS), (TrainConfig, TRAIN_PRESETS)])
def test_presets_name_real_options(config_class, presets):
    for values in presets.values():
        assert to_flat(from_flat(config_class, values)).items() >= values.items()


def test_by_default_a_file_holds_what_every_model_that_starts_from_nothing_takes():
    assert BuildConfig().features.features == ("spectrogram", "mfcc", "logmel")


def test_the_papers_build_gates_every_second_by_itself():
    config = from_flat(BuildConfig, BUILD_PRESETS["paper"])
    assert (config.denoise.scope, config.features.features, config.clips.no_action) == (
        "clip",
        ("spectrogram", "mfcc"),
        "all",
    )


@pytest.mark.parametrize("normalize", ["dataset", "none"])
def test_yamnet_is_given_its_features_as_they_are(normalize):
    assert from_flat(TrainConfig, {"model": "yamnet", "normalize": normalize}).resolved().data.normalize == "none"
    assert from_flat(TrainConfig, {"model": "cnn", "normalize": normalize}).resolved().data.normalize == normalize


def test_configurations_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BuildConfig().sample_rate = 8000


LATER = ("context_clips", "patchout", "ema", "smooth_clips", "loss", "label_smoothing")


def test_a_stored_configuration_without_a_later_option_means_what_it_meant_then():
    stored = {name: value for name, value in to_flat(TrainConfig().resolved()).items() if name not in LATER}
    config = from_json(TrainConfig, json.dumps(stored))
    assert (config.data.context_clips, config.model.patchout) == (0, 0.0)
    options = config.optimization
    assert (options.ema, options.smooth_clips, options.loss, options.label_smoothing) == (0.0, 0, "bce", 0.0)


@pytest.mark.parametrize("model", MODEL_DEFAULTS)
def test_what_is_not_given_is_the_models_default_and_what_is_given_stays(model):
    config = from_flat(TrainConfig, {"model": model, "epochs": 7}).resolved()
    assert (
        config.optimization.epochs == 7 and config.optimization.learning_rate == MODEL_DEFAULTS[model]["learning_rate"]
    )
    assert {name for name, value in to_flat(config).items() if value is None} <= {
        "feature",
        "pretrained",
        "micro_batch_size",
        "amp_dtype",
        "smooth_clips",
    }


def test_what_the_help_says_of_dropout_is_what_was_measured():
    (help_text,) = [one.metadata["help"] for one, _ in flags(TrainConfig) if one.name == "dropout"]
    measured = (Path(egoaudio.__file__).parents[1] / "benchmarks/README.md").read_text().replace("\n", " ")
    assert "(default: 31.1 / 42.1)" in measured and "by default 31.1 and 42.1" in help_text
    assert "dropout 0.5 28.7 / 42.3, none 28.6 / 43.8" in measured
    assert "with 0.5 28.7 and 42.3" in help_text and "without 28.6 per cent on validation and 43.8 on test" in help_text


def test_published_weights_of_ast_are_trained_gently_unless_a_rate_is_given():
    pretrained = {"model": "ast", "pretrained": "weights"}
    assert from_flat(TrainConfig, pretrained).resolved().optimization.learning_rate == 5e-5
    assert from_flat(TrainConfig, {**pretrained, "learning_rate": 1e-3}).resolved().optimization.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"loss": "asymmetric", "label_mode": "single"},
            "`loss='asymmetric'` weighs the classes of a clip one by one: give `label_mode='multi'`",
        ),
        ({"label_smoothing": 0.5}, "`label_smoothing=0.5`: expected less than 0.5"),
        ({"ema": 1.0}, "`ema=1`: expected less than 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        from_flat(TrainConfig, options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup_fraction": 1.5}, r"`warmup_fraction=1\.5`: expected at most 1"),
        (
            {"teacher": ("best.pt",), "teacher_weight": 0.0},
            "`teacher_weight=0`: nothing would be learnt from `teacher`",
        ),
        (
            {"model": "yamnet", "pretrained": ""},
            "`pretrained` is empty, as a variable of the shell is that was not set",
        ),
    ],
)
def test_what_earlier_versions_took_is_refused_of_new_runs_alone(tmp_path, options, words):
    config = from_flat(TrainConfig, options)
    assert from_json(TrainConfig, to_json(config)) == config  # of a checkpoint
    with pytest.raises(ConfigurationError, match=words):
        egoaudio.train(tmp_path / "ego.h5", tmp_path / "run", config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`hop_seconds=0.5`: expected", "--hop-seconds 0.5: expected"),
        ("`clips.hop_seconds` or `denoise.mode='none'`", "--hop-seconds or --denoise none"),
        ("`output='it`s (1) \\\\ here'` is there", "--output it`s (1) \\ here is there"),
        ("`features=('mfcc', 'logmel')`", "--features mfcc,logmel"),
        ("`force=True` replaces, `force=False` keeps", "--force replaces, --no-force keeps"),
        ("`hop_seconds=nan`", "--hop-seconds nan"),
        ("hop_seconds=0.5, `other=1`, `ls output` and `", "hop_seconds=0.5, `other=1`, `ls output` and `"),
    ],
)
def test_parameters_become_flags(text, shown):
    names = ["hop_seconds", "mode", "output", "features", "force"]
    given = {name: f"--{name.replace('_', '-')}" for name in names} | {"mode": "--denoise"}
    assert as_flags(text, given) == shown
