"""Normalisation: by the training videos' own mean and standard deviation, by the paper's numbers, or not at all."""

from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import make_file

from egoaudio.data import normalization
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader

FEATURES = {"spectrogram": (8, 12), "mfcc": (8, 4)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("normalization") / "ego.h5"
    make_file(path, num_videos=24, clips_per_video=9, features=FEATURES, failed=(3,), silent_clips=(0, 40), seed=5)
    with reader.open(path) as file:
        yield file


@pytest.mark.parametrize("feature", FEATURES)
def test_dataset_normalisation_gives_mean_zero_and_deviation_one(file, feature):
    train = np.flatnonzero(file.trainable & (file.video_table["split"] == b"train")[file.clip_table["video"]])
    mean, std = normalization.normalization(file, feature, train, "dataset")
    videos = np.unique(file.clip_table["video"][train])
    values = file[feature][file.usable & np.isin(file.clip_table["video"], videos)].astype(np.float64)
    assert abs(((values - mean) / std).mean()) < 1e-6 and abs(((values - mean) / std).std() - 1) < 1e-6


def test_paper_and_no_normalisation_are_fixed(file):
    mean, std = normalization.normalization(file, "spectrogram", np.arange(3), "paper")
    assert (1.5 - mean) / std == pytest.approx((1.5 + 4.2677393) / (2 * 4.5689974), rel=1e-12)
    assert normalization.normalization(file, "spectrogram", np.arange(3), "none") == (0.0, 1.0)


@pytest.mark.parametrize("statistics", [(0, 0, 0), (100, 1000.0, 10000.0 * (1 + 1e-15)), (100, np.nan, np.nan)])
def test_a_feature_without_spread_cannot_be_normalised(statistics):
    tables = SimpleNamespace(
        path="ego.h5",
        clip_table=np.zeros(4, [("video", "i4")]),
        statistics=lambda feature: np.array([statistics]),
        scale=lambda feature: 1.0,
    )
    with pytest.raises(TrainingError, match="mfcc cannot be normalised.*`normalize='none'`"):
        normalization.normalization(tables, "mfcc", np.arange(4), "dataset")
