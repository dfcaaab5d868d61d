"""Spectrograms as PNG: read back by matplotlib, the right way up, on one scale."""

import io

import matplotlib.image
import numpy as np
import pytest
import synthetic
from report_files import SAMPLE_RATE, make_file

from egoaudio import figures
from egoaudio.hdf5 import reader
from egoaudio.reporting.pictures import Painter, encode_png, power_db


def _read(raw):
    """Return the pixels of a PNG, (height, width, 3), 0 to 255."""
    return np.round(255 * matplotlib.image.imread(io.BytesIO(raw))[..., :3]).astype(int)


def test_a_png_is_what_went_in():
    palette = figures.palette(24)
    levels = np.random.default_rng(0).integers(0, 24, (5, 7)).astype(np.uint8)
    colours = np.frombuffer(palette, np.uint8).reshape(24, 3)
    assert (_read(encode_png(levels, palette)) == colours[levels]).all()


@pytest.mark.parametrize(
    "name, shape", [("logmel", (98, 128)), ("spectrogram", (32, 1025)), ("mfcc", (32, 20)), ("yamnet", (98, 64))]
)
def test_time_goes_to_the_right_and_low_frequencies_are_at_the_bottom(tmp_path, name, shape):
    path = synthetic.make_file(tmp_path / "ego.h5", 2, 3, features={name: shape}, class_dependent=False)
    with reader.open(path) as file:
        painter = Painter.of_file(file)
        values = np.full(shape, painter.low)
        values[-shape[0] // 4 :, : shape[1] // 4] = painter.high  # late and low
        brightness = _read(painter.paint(values)).sum(axis=2)
        height, width = brightness.shape
        assert height <= 64 and width <= 128
        assert brightness[-2, -1] > brightness[0, -1] and brightness[-2, -1] > brightness[-2, 0]


def test_a_waveform_is_drawn_as_its_spectrum(tmp_path):
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    spectrum = power_db(np.sin(2 * np.pi * 1000 * times).astype(np.float32), SAMPLE_RATE)
    assert np.argmax(spectrum.mean(axis=0)) == round(1000 / (SAMPLE_RATE / 512))
    path = synthetic.make_file(tmp_path / "ego.h5", 2, 3, features={"waveform": (1600,)})
    with reader.open(path) as file:
        assert Painter.of_file(file).paint(file["waveform"][0]).startswith(b"\x89PNG")


def test_a_quiet_clip_looks_quiet(tmp_path):
    with reader.open(make_file(tmp_path / "ego.h5")) as file:
        painter = Painter.of_file(file)
        clip = np.asarray(file["logmel"][0])
        assert _read(painter.paint(clip - 100)).sum() < _read(painter.paint(clip)).sum()


def test_a_file_without_data_has_no_painter(tmp_path):
    path = synthetic.make_file(tmp_path / "ego.h5", 2, 3, features={"logmel": (4, 8)}, failed=(0, 1))
    with reader.open(path) as file:
        assert Painter.of_file(file) is None
