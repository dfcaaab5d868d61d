"""Egoaudio files whose features are those of their waveforms, as a build makes them, without any media."""

import itertools

import numpy as np
import synthetic

from egoaudio.audio.clips import count_samples
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.hdf5 import integrity, reader, schema
from egoaudio.hdf5.writer import RowWriter, offsets


def make_sound_file(path, features, num_videos=12, clips_per_video=12, seed=0, **options):
    """Write a file of tones in noise, one for each class, and return its path.

    Parameters
    ----------
    path : path-like
    features : sequence of str
        Arrays of the file.
    num_videos, clips_per_video, seed : int
        The sounds and the labels depend on these alone.
    options
        Of ``BuildConfig``.
    """
    config = from_flat(BuildConfig, {"clip_seconds": 0.25, "mode": "none", **options, "features": tuple(features)})
    num_samples, context_samples = count_samples(config.clips, config.sample_rate)
    extractor = FeatureExtractor(config.features, config.sample_rate, context_samples)
    shapes = {**extractor.shapes, "waveform": (num_samples,)}
    arrays = tuple(
        schema.ArrayLayout(name, shapes[name], config.features.dtype_of(name), extractor.attributes(name))
        for name in config.features.features
    )
    synthetic.make_file(
        path, num_videos, clips_per_video, seed=seed, unlabelled=0.0, arrays=arrays,
        axes=extractor.axes, config=to_json(config), sample_rate=config.sample_rate,
        clip_seconds=config.clips.clip_seconds, hop_seconds=config.clips.step_seconds,
    )  # fmt: skip
    with reader.open(path) as file:
        videos, classes = file.video_table.copy(), file.class_table.copy()
    labels = _labels(num_videos * clips_per_video, len(classes), seed)
    classes["num_clips"] = labels.sum(axis=0)
    rows = extractor(_sounds(labels, context_samples, config.sample_rate, seed))
    with RowWriter(path, offsets(path)) as writer:
        writer.write("labels", 0, labels)
        writer.write("video_labels", 0, labels.reshape(num_videos, clips_per_video, -1).max(axis=1))
        writer.write("classes", 0, classes)
        for (video, row), name in itertools.product(enumerate(videos), config.features.features):
            clips = slice(row["first_clip"], row["first_clip"] + row["num_clips"])
            values = np.ascontiguousarray(rows[name][clips][:, : shapes[name][0]])
            writer.write(name, clips.start, values)
            writer.write(f"checksums/{name}", video, np.array([integrity.checksum(values)], "u4"))
            writer.write(f"statistics/{name}", video, integrity.statistics(values)[np.newaxis])
    return path


def _labels(num_clips, num_classes, seed):
    """Return uint8 (n, C): up to three actions a clip, the last class where there is none."""
    labels = (np.random.default_rng(seed).random((num_clips, num_classes)) < 0.25).astype("u1")
    labels[:, -1] = ~labels[:, :-1].any(axis=1)
    return labels


def _sounds(labels, num_samples, sample_rate, seed):
    """Return float32 (n, num_samples): noise of any level, and a tone for each active class."""
    generator = np.random.default_rng(seed)
    times = np.arange(num_samples) / sample_rate
    tones = np.sin(2 * np.pi * 300 * np.arange(1, labels.shape[1] + 1)[:, None] * times)
    noise = generator.standard_normal((len(labels), num_samples)) + labels @ tones
    return (0.1 * 10 ** generator.uniform(-1, 0, (len(labels), 1)) * noise).astype(np.float32)
