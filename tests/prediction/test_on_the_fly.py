"""Features computed from waveforms where the model runs: training, evaluation and prediction as from stored ones."""

import ast
import pickle
import re

import numpy as np
import pytest
import small_runs
import torch
from click.testing import CliRunner
from conftest import make_media
from sound_files import make_sound_file

from egoaudio import cli
from egoaudio.config.options import from_flat
from egoaudio.config.predict import PredictConfig
from egoaudio.config.train import TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.ranks import Group
from egoaudio.errors import CheckpointError, ConfigurationError
from egoaudio.evaluation.evaluate import evaluate, score_split
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints
from egoaudio.models.frontend import front_end_of_file
from egoaudio.prediction.predict import predict
from egoaudio.training.train import train

FEATURES = ("spectrogram", "mfcc", "logmel", "yamnet")
OPTIONS = {"epochs": 2, "batch_size": 32, "validation_fraction": 0.3, "context_clips": 1, "gain_db": 0.0}
SMALL_STEPS = {"learning_rate": 3e-4}  # Adam's first steps go by the sign of gradients near 0, which rounding decides
SOUND = {"gain_db": 6.0, "time_shift_seconds": 0.2, "mix_snr_db": (0.0, 20.0), "filter_db": 6.0}
BUILD = {"n_fft": 512, "hop_length": 200}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the same sounds: all features and the waveforms, the waveforms alone, one feature alone."""
    folder = tmp_path_factory.mktemp("files")
    kinds = {"stored": (*FEATURES, "waveform"), "waveforms": ("waveform",), "features": ("logmel",)}
    return {name: make_sound_file(folder / f"{name}.h5", kind, **BUILD) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def stored(files):
    return files["stored"]


@pytest.fixture(scope="module")
def waveforms(files):
    return files["waveforms"]


@pytest.fixture(scope="module")
def features_alone(files):
    return files["features"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two recordings, the second one longer than a batch."""
    folder = tmp_path_factory.mktemp("media")
    for number, seconds in enumerate((1.6, 9.1)):
        make_media(folder / f"{number}.wav", seconds, "pcm_s16le", sample_rate=16000, channels=1)
    return folder


def _train(path, folder, **options):
    return train(path, folder, from_flat(TrainConfig, {**OPTIONS, **options}), device="cpu")


@pytest.fixture(scope="module")
def runs(stored, waveforms, tmp_path_factory):
    """The same training from stored features, and from the waveforms of a file that has nothing else."""
    folder = tmp_path_factory.mktemp("runs")
    from_file = _train(stored, folder / "stored", **SMALL_STEPS)
    return from_file, _train(waveforms, folder / "computed", on_the_fly=True, **SMALL_STEPS)


def _assert_same_losses(one, other):
    rows = zip(small_runs.table(one.folder), small_runs.table(other.folder), strict=True)
    for ours, theirs in rows:
        for name in ("train_loss", "val_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3)


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("context_clips", [0, 1])
def test_a_loader_computes_the_files_features(stored, feature, context_clips):
    with reader.open(stored) as file:
        front_end, _ = front_end_of_file(file, feature, context_clips)
    moments = (-3.0, 7.0)
    ours, theirs = (
        next(Loader(ClipDataset(stored, feature, None, "multi", moments, context_clips, one), 16, _data()).epoch(0))
        for one in (front_end, None)
    )
    assert ours.features.shape == theirs.features.shape
    error = (ours.features - theirs.features).norm() / theirs.features.norm()
    assert 0 < error < 1e-4
    assert torch.equal(ours.labels, theirs.labels) and np.array_equal(ours.rows, theirs.rows)


def _data(**options):
    return from_flat(TrainConfig, options).data


def test_augmentation_and_worker_processes_change_computed_features_as_they_do_stored_ones(stored):
    with reader.open(stored) as file:
        front_end, _ = front_end_of_file(file, "logmel")
    config = _data(mixup=0.3, spec_augment=True, loader_workers=1)
    ours, theirs = (
        next(Loader(_dataset(stored, one), 16, config, 1, training=True).epoch(0)) for one in (front_end, None)
    )
    assert (ours.features - theirs.features).norm() / theirs.features.norm() < 1e-4
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    "options",
    [{"gain_db": 6.0}, {"time_shift_seconds": 0.2}, {"mix_snr_db": (0.0, 20.0)}, {"filter_db": 6.0}, SOUND],
)
def test_level_shift_noise_and_filter_are_the_sounds(stored, front_end, options):
    """A clip and its neighbours are changed as one, then their features are computed; from any batch on."""
    computed, sound = _dataset(stored, front_end, 1), ClipDataset(stored, "waveform", context_clips=1)
    config = _data(on_the_fly=True, **options)
    plain, changed, features, rest = (
        list(Loader(one, 16, data, 1, training=True).epoch(2, start))
        for one, data, start in ((sound, _data(), 0), (sound, config, 0), (computed, config, 0), (computed, config, 1))
    )
    for before, after, batch in zip(plain, changed, features, strict=True):
        assert (after.features != before.features).any(dim=1).all()
        torch.testing.assert_close(batch.features, (front_end(after.features) + 3) / 7, rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.labels, before.labels)
    for batch, again in zip(features[1:], rest, strict=True):
        assert torch.equal(batch.features, again.features)


def test_silence_stays_silent_however_loud_the_rest(stored, front_end):
    dataset = _dataset(stored, front_end, 1)
    batch = next(Loader(dataset, 64, _data(on_the_fly=True, gain_db=20.0), 1, training=True).epoch(0))
    after_silence = np.isin(batch.rows, dataset.file.video_table["first_clip"])
    before_clip = batch.features[torch.from_numpy(after_silence), : batch.features.shape[1] // 3]
    assert len(before_clip) > 2
    expected = (front_end(torch.zeros(1, dataset.item_shape[0]))[:, : before_clip.shape[1]] + 3) / 7
    torch.testing.assert_close(before_clip, expected.expand_as(before_clip))


def test_a_rank_without_a_clip_computes_nothing(stored, front_end):
    dataset, config = _dataset(stored, front_end, 1, np.arange(3)), _data(on_the_fly=True, **SOUND)
    whole, first, second = (
        list(Loader(dataset, 2, config, 1, training=True, group=group).epoch(0))
        for group in (Group(), Group(0, 2), Group(1, 2))
    )
    assert [len(batch.features) for batch in first + second] == [1, 1, 1, 0]
    for batch, *parts in zip(whole, first, second, strict=True):
        torch.testing.assert_close(torch.cat([part.features for part in parts]), batch.features, rtol=0, atol=1e-4)


def test_a_dataset_in_another_process_gives_waveforms_as_they_are(stored):
    with reader.open(stored) as file:
        dataset = _dataset(stored, front_end_of_file(file, "logmel")[0])
        expected = np.array(file["waveform"][dataset.rows[:5]])
    for one in (dataset, pickle.loads(pickle.dumps(dataset))):
        np.testing.assert_array_equal(one.fetch(np.arange(5))[0], expected)


def _dataset(path, front_end, context_clips=0, rows=None):
    return ClipDataset(path, "logmel", rows, "multi", (-3.0, 7.0), context_clips, front_end)


@pytest.fixture(scope="module")
def front_end(stored):
    """Of a clip between its neighbours."""
    with reader.open(stored) as file:
        return front_end_of_file(file, "logmel", 1)[0]


# ------------------------------------------------------------------------------------------------ training


def test_training_learns_as_from_stored_features(runs):
    _assert_same_losses(*runs)
    from_file, computed = (checkpoints.load(run.best) for run in runs)
    assert from_file["normalization"] == pytest.approx(computed["normalization"], rel=1e-5)
    for name in ("feature", "feature_shape", "feature_attributes", "sample_rate", "class_ids"):
        assert from_file[name] == computed[name]


@pytest.mark.parametrize("model, feature", [("cnn", "mfcc"), ("cnn-small", "spectrogram")])
def test_other_features_and_models_learn_so_too(stored, tmp_path, model, feature):
    options = {"model": model, "feature": feature, "epochs": 1, "context_clips": 0, "gain_db": 0.0, **SMALL_STEPS}
    one = _train(stored, tmp_path / "stored", **options)
    other = _train(stored, tmp_path / "computed", on_the_fly=True, **options)
    _assert_same_losses(one, other)


def test_a_run_with_changed_sound_is_resumed_bit_for_bit_and_may_be_cut(waveforms, tmp_path, monkeypatch):
    """``cnn``, as batch norm depends on the size of what it is given."""
    options = {"model": "cnn", "feature": "mfcc", "on_the_fly": True, **SOUND}

    def interrupt():
        raise KeyboardInterrupt

    whole = _train(waveforms, tmp_path / "whole", **options)
    small_runs.on_step(monkeypatch, {2: interrupt})
    with pytest.raises(KeyboardInterrupt):
        _train(waveforms, tmp_path / "run", **options)
    monkeypatch.undo()
    resumed = _train(waveforms, tmp_path / "run", **options)
    small_runs.assert_same_run(resumed.folder, whole.folder)
    _assert_same_losses(_train(waveforms, tmp_path / "cut", micro_batch_size=5, **options), whole)
    plain = _train(waveforms, tmp_path / "plain", **options | dict.fromkeys(SOUND, 0.0) | {"mix_snr_db": ()})
    unchanged, changed = (small_runs.table(run.folder)[0]["train_loss"] for run in (plain, whole))
    assert float(changed) != pytest.approx(float(unchanged), rel=1e-3)


def test_a_student_and_its_teacher_may_both_compute_features(runs, waveforms, tmp_path):
    teacher = str(runs[0].best)
    run = _train(waveforms, tmp_path / "run", teacher=(teacher,), epochs=1, on_the_fly=True)
    assert (run.folder / "teacher.npz").exists()


def test_a_file_without_waveforms_is_refused(features_alone, tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no waveform to compute features from; it has logmel: build"):
        _train(features_alone, tmp_path / "run", on_the_fly=True)


def test_waveforms_that_would_be_enough_are_pointed_out(waveforms, tmp_path):
    with pytest.raises(ConfigurationError, match="this file has waveform: give `on_the_fly=True`"):
        _train(waveforms, tmp_path / "run")


def test_the_option_is_refused_where_it_has_no_effect():
    with pytest.raises(ConfigurationError, match="has no effect with `feature='waveform'`"):
        from_flat(TrainConfig, {"model": "yamnet", "feature": "waveform", "on_the_fly": True})


@pytest.mark.parametrize("option, typed", [("mix_snr_db=(5.0, 20.0)", "5,20"), ("filter_db=6.0", "6")])
def test_changes_of_sound_are_refused_where_features_are_read(stored, tmp_path, option, typed):
    name, value = option.split("=")
    config = {name: ast.literal_eval(value)}
    words = re.escape(f"`{option}` changes sound, and the features are read") + ".*give `on_the_fly=True`"
    with pytest.raises(ConfigurationError, match=words):
        from_flat(TrainConfig, config)
    flag = f"--{name.replace('_', '-')}"
    result = CliRunner().invoke(cli.train, [str(stored), "--output", str(tmp_path / "run"), flag, typed])
    assert result.exit_code == 2 and f"{flag} {option.partition('=')[2].strip('()').replace(' ', '')}" in result.stderr
    assert "give --on-the-fly" in result.stderr and not (tmp_path / "run").exists()
    for sound in ({"on_the_fly": True}, {"model": "yamnet", "feature": "waveform"}):
        assert from_flat(TrainConfig, {**config, **sound}).data.on_the_fly == ("on_the_fly" in sound)


@pytest.mark.parametrize("given", ["5,3", "1,2,3", "-200", "1,nan", "a", "101"])
def test_a_range_that_is_none_is_refused(stored, tmp_path, given):
    arguments = [str(stored), "--output", str(tmp_path / "run"), "--on-the-fly", "--mix-snr-db", given]
    result = CliRunner().invoke(cli.train, arguments)
    assert result.exit_code == 2 and "mix-snr-db" in result.stderr and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_gives_the_same_scores_from_any_file(runs, stored, waveforms, features_alone, tmp_path):
    read = score_split(runs[1].best, features_alone, "test", "cpu").scores
    for path in (waveforms, stored):  # features are computed where there are waveforms
        np.testing.assert_allclose(score_split(runs[1].best, path, "test", "cpu").scores, read, atol=1e-4)
    one, other = (
        evaluate(runs[0].best, path, output=tmp_path, device="cpu", num_resamples=0, on_the_fly=computed)
        for path, computed in ((stored, False), (waveforms, True))
    )
    assert other.scores["map"].value == pytest.approx(one.scores["map"].value, abs=5e-3)


def test_evaluation_points_out_that_waveforms_would_be_enough(runs, waveforms):
    with pytest.raises(CheckpointError, match=r"has no logmel.*it has waveform: give `on_the_fly=True`, or rebuild"):
        evaluate(runs[0].best, waveforms, device="cpu", num_resamples=0)


def test_evaluation_does_not_advise_what_it_would_refuse(runs, tmp_path):
    """Waveforms hold the clip alone; a feature with the sound around it cannot be made of them."""
    path = make_sound_file(tmp_path / "ego.h5", ("waveform",), context_seconds=0.5, **BUILD)
    with pytest.raises(
        CheckpointError, match=r"has no logmel.*it has waveform: rebuild with `features=\('waveform', 'logmel'\)`"
    ):
        evaluate(runs[0].best, path, device="cpu", num_resamples=0)


def test_evaluation_refuses_a_feature_of_another_kind(runs, tmp_path):
    path = make_sound_file(tmp_path / "ego.h5", ("waveform",), clip_seconds=0.5, **BUILD)
    with pytest.raises(CheckpointError, match=r"shape of logmel: checkpoint \[23, 128\], file \[48, 128\]"):
        evaluate(runs[1].best, path, device="cpu", num_resamples=0)


# ------------------------------------------------------------------------------------------------ prediction


def _scores(checkpoint, media, **options):
    found = list(predict(checkpoint, media, from_flat(PredictConfig, options), device="cpu"))
    return {one.name: np.asarray(one.scores.iloc[:, 2:]) for one in found}


def test_predictions_of_new_sound_are_the_same(runs, media, kept_workers):
    """Of a model that was trained on stored features, and of one that was not, which needs no option."""
    stored, computed = _scores(runs[0].best, media), _scores(runs[0].best, media, on_the_fly=True)
    trained_so, asked = _scores(runs[1].best, media), _scores(runs[1].best, media, on_the_fly=True)
    assert computed.keys() == stored.keys() and len(stored) == 2
    for name in stored:
        assert stored[name].shape == computed[name].shape and np.ptp(stored[name], axis=0).max() > 5e-3
        np.testing.assert_allclose(computed[name], stored[name], atol=1e-4)
        np.testing.assert_allclose(trained_so[name], stored[name], atol=1e-2)  # another run, with its own rounding
        np.testing.assert_array_equal(asked[name], trained_so[name])


def test_predictions_of_a_files_waveforms_are_the_same(runs, stored, waveforms):
    expected, found = _scores(runs[0].best, stored), _scores(runs[0].best, waveforms, on_the_fly=True)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_features_of_more_sound_than_a_clip_are_refused(media, tmp_path):
    path = make_sound_file(tmp_path / "ego.h5", ("logmel", "waveform"), context_seconds=0.5, **BUILD)
    with pytest.raises(ConfigurationError, match="`context_seconds=0.5`.*give `context_clips`"):
        _train(path, tmp_path / "run", on_the_fly=True)
    run = _train(path, tmp_path / "run", epochs=1, context_clips=0)
    with pytest.raises(ConfigurationError, match="`context_seconds=0.5`"):
        _scores(run.best, media, on_the_fly=True)
