"""What is heard of a clip: the samples of its time, from the file's waveform or from its video."""

import h5py
import numpy as np
import pytest
from conftest import chirp, make_media
from report_files import SAMPLE_RATE, make_file

from egoaudio.errors import MediaError
from egoaudio.hdf5 import reader
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.reporting.excerpts import Excerpt, MediaSounds, StoredSounds, open_sounds

SECONDS = 6.0


def _samples(sounds, excerpts):
    """Return ``{row: samples}``."""
    return {excerpt.row: samples for excerpt, samples in sounds.read(excerpts)}


def test_a_stored_clip_is_heard_as_it_is_stored(tmp_path):
    with reader.open(make_file(tmp_path / "ego.h5", hostile=False)) as file:
        found = _samples(StoredSounds(file), [Excerpt.of_clip(file, row) for row in (0, 7, 59)])
        for row, samples in found.items():
            np.testing.assert_array_equal(samples, file["waveform"][row])


def test_a_short_clip_is_heard_with_its_neighbours(tmp_path):
    path = make_file(tmp_path / "ego.h5", 2, 20, hostile=False)
    with h5py.File(path, "r+") as file:  # as if clips were a quarter of a second long
        clips = file["clips"][()]
        clips["start_seconds"] = np.tile(np.arange(20) / 4, 2)
        clips["stop_seconds"] = clips["start_seconds"] + 0.25
        clips["num_samples"] = SAMPLE_RATE // 4
        file["clips"][...] = clips
        file.attrs["clip_seconds"] = 0.25
    with reader.open(path) as file:
        excerpt = Excerpt.of_clip(file, 10)
        assert (excerpt.start_seconds, excerpt.stop_seconds) == (2.125, 3.125)
        assert (excerpt.picture_start_seconds, excerpt.picture_stop_seconds) == (2.5, 2.75)
        quarter = SAMPLE_RATE // 4
        expected = np.concatenate([file["waveform"][row][:quarter] for row in range(8, 13)])[
            quarter // 2 : -quarter // 2
        ]
        np.testing.assert_array_equal(_samples(StoredSounds(file), [excerpt])[10], expected)
        assert Excerpt.of_clip(file, 20).start_seconds == 0


@pytest.fixture
def built(tmp_path):
    """A file, and a folder with the video of all but one of its recordings, each as long as its clips."""
    path = make_file(tmp_path / "ego.h5", 3, 6, hostile=False)
    (tmp_path / "videos").mkdir()
    for number in range(2):
        sound = chirp(SAMPLE_RATE, SECONDS, amplitude=0.2 + 0.2 * number)
        make_media(
            tmp_path / "videos" / f"V{number:04d}EGO.wav",
            SECONDS,
            "pcm_f32le",
            sample_rate=SAMPLE_RATE,
            channels=1,
            sound=sound,
        )
    return path, tmp_path / "videos"


def test_a_video_is_heard_where_the_clip_lies(built):
    path, videos = built
    with reader.open(path) as file:
        excerpts = [Excerpt.of_clip(file, row) for row in (3, 0, 5, 8, 14)]
        found = _samples(MediaSounds(file, videos), excerpts)
    assert set(found) == {3, 0, 5, 8}  # the third video is not there
    for row, samples in found.items():
        start = (row % 6) * SAMPLE_RATE
        expected = chirp(SAMPLE_RATE, SECONDS, amplitude=0.2 if row < 6 else 0.4)[start : start + SAMPLE_RATE]
        np.testing.assert_allclose(samples, expected, atol=1e-4)


def test_a_video_that_was_replaced_is_not_heard(built):
    path, videos = built
    with h5py.File(path, "r+") as file:
        prints = file["fingerprints"][()]
        prints[0] = np.frombuffer(fingerprint(videos / "V0000EGO.wav"), np.uint8)
        prints[1] = 7
        file["fingerprints"][...] = prints
    with reader.open(path) as file, pytest.warns(UserWarning, match="V0001EGO.wav is another file"):
        assert set(_samples(MediaSounds(file, videos), [Excerpt.of_clip(file, row) for row in (1, 7)])) == {1}


def test_a_folder_without_the_videos_is_refused(built, tmp_path):
    path, _ = built
    (tmp_path / "empty").mkdir()
    with reader.open(path) as file, pytest.raises(MediaError, match="none of the 3 videos of .* is in it"):
        open_sounds(file, tmp_path / "empty")
