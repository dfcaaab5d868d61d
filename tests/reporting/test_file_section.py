"""What a page says of a file, against brute force and against files made to be wrong."""

import h5py
import numpy as np
import pytest
import synthetic
from report_files import HOSTILE, SAMPLE_RATE, make_file, rename

from egoaudio.errors import Status
from egoaudio.hdf5 import reader
from egoaudio.reporting import levels
from egoaudio.reporting.file_section import describe
from egoaudio.reporting.names import clean


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("section") / "ego.h5", 10, 6, failed=(2, 4), unlabelled=0.2, seed=3)


@pytest.fixture(scope="module")
def section(path):
    with reader.open(path) as file:
        return describe(file, num_examples=3)


def test_counts_are_those_of_the_file(path, section):
    with reader.open(path) as file:
        clips = file.labels[file.trainable]
        for row in section.classes:
            assert row.num_clips == clips[:, row.index].sum()
            assert row.num_videos == file.video_labels[:, row.index].sum()
            assert row.share == pytest.approx(clips[:, row.index].mean())
    assert [row.num_clips for row in section.classes] == sorted(
        (row.num_clips for row in section.classes), reverse=True
    )
    assert [(failure.reason, failure.num_videos) for failure in section.failures] == [("unreadable", 2)]


def test_examples_have_the_class_and_are_of_different_videos(path, section):
    with reader.open(path) as file:
        for row in section.classes:
            assert len(row.examples) == 3
            assert file.labels[list(row.examples), row.index].all() and file.trainable[list(row.examples)].all()
            assert len(set(file.clip_table["video"][list(row.examples)])) == 3


def test_pairs_are_those_that_occur_together(path, section):
    with reader.open(path) as file:
        labels = file.labels[file.trainable].astype(bool)
        titles = {row.title: row.index for row in section.classes}
    overlaps = []
    for pair in section.pairs:
        first, second = (labels[:, titles[name]] for name in (pair.first, pair.second))
        assert pair.num_clips == (first & second).sum() >= 5
        assert pair.share_of_first == pytest.approx(pair.num_clips / first.sum())
        overlaps.append((first & second).sum() / (first | second).sum())
    assert overlaps == sorted(overlaps, reverse=True) and overlaps
    for row, column, share in section.matrix.cells:
        first, second = (labels[:, titles[section.matrix.names[k]]] for k in (row, column))
        assert share == pytest.approx((first & second).sum() / first.sum())


def test_levels_are_those_of_the_waveform(path):
    with reader.open(path) as file:
        measured = levels.measure(file, [])
        assert measured.feature == "waveform" and len(measured.rows) == file.usable.sum()
        for row, level in zip(measured.rows, measured.rms_db, strict=True):
            waveform = np.asarray(file["waveform"][row], np.float64)
            assert level == pytest.approx(20 * np.log10(np.sqrt(np.mean(waveform**2))), abs=1e-3)


def test_the_level_of_a_spectrogram_is_that_of_its_sound(tmp_path):
    librosa = pytest.importorskip("librosa")
    sound = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    power = np.abs(librosa.stft(sound, n_fft=2048, hop_length=512, pad_mode="constant")) ** 2
    path = synthetic.make_file(tmp_path / "ego.h5", 1, 1)
    with h5py.File(path, "r+") as file:
        file["spectrogram"][0] = 10 * np.log10(np.maximum(power.T, 1e-10))
    with reader.open(path) as file:
        assert levels.measure(file, []).rms_db[0] == pytest.approx(-20, abs=0.5)


def _findings(path):
    with reader.EgoAudioFile(path) as file:
        return {finding.title: finding for finding in describe(file, 1).findings}


def test_nothing_is_said_of_a_file_in_which_nothing_is_wrong(tmp_path):
    path = make_file(tmp_path / "ego.h5", 8, 20, hostile=False, test_fraction=0.5, seed=1)
    with h5py.File(path, "r+") as file:
        rename(file, "videos", "subject", [f"S{number}" for number in range(8)])
    assert _findings(path) == {}


def _loud(file):
    _set(file, "videos", "peak_db", 3, -0.01)


def _faint(file):
    _set(file, "videos", "rms_db", 3, -70)


def _lost(file):
    _set(file, "videos", "lost_samples", 3, SAMPLE_RATE)


def _same_id(file):
    rename(file, "videos", "video_id", ["V0007EGO"])  # the first in train, the last in test


def _twins(file):
    prints = file["fingerprints"][()]
    prints[[0, 7]] = 9
    file["fingerprints"][...] = prints


def _mute_class(file):
    _set_labels(file, 2, 0)


def _untrained_class(file):
    labels = file["labels"][()]
    labels[:80, 2] = 0
    file["labels"][...] = labels


def _silent_class(file):
    labels, waveform = file["labels"][()], file["waveform"][()]
    waveform[labels[:, 2] == 1] = 0
    file["waveform"][...] = waveform


def _unfinished(file):
    file.attrs["complete"] = 0
    _set(file, "videos", "status", 3, Status.PLANNED)


def _set(file, table, column, row, value):
    rows = file[table][()]
    rows[column][row] = value
    file[table][...] = rows


def _set_labels(file, column, value):
    labels = file["labels"][()]
    labels[:, column] = value
    file["labels"][...] = labels


@pytest.mark.parametrize(
    "spoil, title, name",
    [
        (_loud, "Recordings that reach full scale", "V0003EGO"),
        (_faint, "Recordings that are nearly silent", "V0003EGO"),
        (_lost, "Sound: lost", None),
        (_same_id, "Videos in two splits", "V0007EGO"),
        (_twins, "Recordings that are there twice", None),
        (_mute_class, "Classes without any sound", "c002"),
        (_untrained_class, "Classes that are tested, but not trained on", "c002"),
        (_silent_class, "Classes that can hardly be heard", "c002"),
        (_silent_class, "Labelled clips that are nearly silent", None),
        (_unfinished, "Not complete", None),
    ],
)
def test_what_is_wrong_is_found(tmp_path, spoil, title, name):
    path = make_file(tmp_path / "ego.h5", 8, 20, hostile=False, test_fraction=0.5, seed=1)
    with h5py.File(path, "r+") as file:
        spoil(file)
    found = _findings(path)
    assert title in found
    assert name is None or any(name in one for one in found[title].names)


@pytest.mark.parametrize(
    "settings",
    [{"features": {"mfcc": (4, 8)}}, {"features": {}}, {"failed": range(3)}, {"num_classes": 1}, {"unlabelled": 1.0}],
)
def test_files_with_next_to_nothing_are_described(tmp_path, settings):
    path = synthetic.make_file(tmp_path / "ego.h5", 3, 4, **{"features": {"logmel": (4, 8)}, **settings})
    with reader.open(path) as file:
        section = describe(file, 2)
        assert len(section.classes) == file.num_classes and section.facts


def test_names_are_cleaned(section):
    names = {row.name for row in section.classes}
    assert {clean(name) for name in HOSTILE[:4]} <= names
    assert clean("a\u202eb\nc\x1b") == "a?b?c?" and clean("x" * 500) == "x" * 119 + "…" and clean("שלום") == "שלום"
