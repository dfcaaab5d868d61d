"""Pictures are drawn from any file, and show every class."""

import warnings

import matplotlib.image
import numpy as np
import pytest
import synthetic

from egoaudio import figures
from egoaudio.errors import StoreError
from egoaudio.hdf5 import reader
from egoaudio.hdf5.writer import RowWriter, offsets


@pytest.mark.parametrize(("num_classes", "narrowest"), [(2, 900), (60, 900), (158, 2400)])
def test_every_class_has_a_bar_sorted_by_its_count(tmp_path, monkeypatch, num_classes, narrowest):
    drawn = []
    monkeypatch.setattr(
        figures,
        "_finish",
        lambda figure, axes, *rest, real=figures._finish: (drawn.append(axes), real(figure, axes, *rest)),
    )
    with reader.open(
        synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)}, num_classes=num_classes, num_videos=20)
    ) as file:
        figures.plot_classes(file, tmp_path / "a.png")
        heights = [round(bar.get_height()) for bar in drawn[0].patches]
        names = [label.get_text() for label in drawn[0].get_xticklabels()]
        assert heights == sorted(file.count_classes(), reverse=True)
        assert {name.split()[0] for name in names} == set(file.classes["class_id"])
        assert drawn[0].get_yscale() == "log"
        counts = file.classes.set_index("class_id")["num_clips"]
        assert [counts[name.split()[0]] for name in names] == heights
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[1] >= narrowest
    assert image[..., :3].std() > 0.05  # something is on it


def test_same_file_gives_the_same_picture(tmp_path):
    with reader.open(synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)})) as file:
        figures.plot_classes(file, tmp_path / "a.png")
        figures.plot_classes(file, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "features",
    [{"mfcc": (3, 20)}, {"spectrogram": (32, 1025), "waveform": (1600,)}, {"logmel": (8, 128)}, {"mfcc": (1, 1)}],
)
def test_clip_shows_each_of_its_features(tmp_path, features):
    with reader.open(synthetic.make_file(tmp_path / "a.h5", features=features)) as file:
        figures.plot_clip(file, 3, tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").shape[0] > 200 * len(features)


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)})
    extents = offsets(path)
    with RowWriter(path, extents) as writer:
        rows = writer.read("classes", 0, 1)
        rows["name"] = b"$\\frac{$\x1b_^ {x"
        writer.write("classes", 0, rows)
        videos = writer.read("videos", 0, extents["videos"].shape[0])
        videos["video_id"] = b"$_^$"
        writer.write("videos", 0, videos)
    with reader.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.plot_classes(file, tmp_path / "a.png")
        figures.plot_clip(file, int(np.flatnonzero(file.labels[:, 0])[0]), tmp_path / "b.png")


def test_place_that_cannot_be_written_says_so(tmp_path):
    with (
        reader.open(synthetic.make_file(tmp_path / "a.h5", features={"mfcc": (2, 3)})) as file,
        pytest.raises(StoreError, match="nowhere.*cannot be written"),
    ):
        figures.plot_classes(file, tmp_path / "nowhere" / "a.png")
