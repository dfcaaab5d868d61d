"""Files to make pages of, with names of strangers, and what Playwright cannot do on pages that forbid eval."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import synthetic

from egoaudio.hdf5 import schema, scores_file
from egoaudio.inputs.fingerprint import fingerprint

HOSTILE = (
    "<script>window.pwned = 1</script>",
    "\"><img src=x onerror='window.pwned = 1'>",
    "</script><script>window.pwned = 1</script>",
    "{{ 7 * 7 }} {% raw %} & &lt; &#60;",
    "שלום עולם",  # from right to left, and a name that may be shown
    "\u202egnp.exe\u202c",  # turns what follows it round: shown as ?
    "a\x1b[31m\x00\nb",
    "javascript:window.pwned=1",
)
"""Names of strangers; ``names.clean`` of each is what a page has to show."""
_ROOM = "x" * 64  # bytes of a name in these files
SAMPLE_RATE = 16000


def wait_until(page, expression):
    """Wait until a JavaScript expression is true; Playwright's own wait needs eval, which the pages forbid."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"not true after 20 s: {expression}")


def make_file(path, num_videos=10, clips_per_video=6, hostile=True, **settings):
    """Write a small file with a waveform and a log-mel of it, and names of strangers; return its path.

    In each clip every class that is on is a tone of its own, 300 (k + 1) Hz.
    """
    room = {
        "video_dtype": schema.video_dtype(
            video_id=[_ROOM], file=[_ROOM], split=["train", "test"], subject=[_ROOM], scene=[_ROOM]
        ),
        "class_dtype": schema.class_dtype(class_id=[_ROOM], name=[_ROOM]),
    }
    synthetic.make_file(
        path,
        num_videos,
        clips_per_video,
        features={"logmel": (20, 32), "waveform": (SAMPLE_RATE,)},
        **{"num_classes": 5, "unlabelled": 0.0, **room, **settings},
    )
    with h5py.File(path, "r+") as file:
        labels = file["labels"][()]
        times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        tones = np.stack([np.sin(2 * np.pi * 300 * (k + 1) * times) for k in range(labels.shape[1])])
        file["waveform"][...] = 0.1 * labels @ tones + 0.001 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
        if hostile:
            rename(file, "videos", "video_id", HOSTILE)
            rename(file, "videos", "error", HOSTILE)
            rename(file, "videos", "subject", HOSTILE)
            rename(file, "classes", "name", HOSTILE[: labels.shape[1] - 1])
    return path


def rename(file, table, column, names):
    """Give the first rows of a table other texts."""
    rows = file[table][()]
    for row, name in enumerate(names[: len(rows)]):
        rows[column][row] = name.encode()
    file[table][...] = rows


def make_scores(folder, recordings, num_classes=4, hostile=True, source="", config=None, **columns):
    """Write a folder of predictions, scores.h5 alone; return the file's path.

    Parameters
    ----------
    folder : pathlib.Path
        Made.
    recordings : sequence of tuple
        ``(video_id, file, scores (n, num_classes), start of each clip in seconds)``; a clip is 1 s long. NaN is a clip
        without sound; a recording with a text for its scores failed for that reason.
    columns
        Of ``/classes``: onset and offset are 0.5 and 0.35, slope 1 and intercept 0 if not given.
    """
    folder.mkdir()
    names = [*HOSTILE[:num_classes]] if hostile else [f"class {k}" for k in range(num_classes)]
    usual = {"onset": 0.5, "offset": 0.35, "slope": 1.0, "intercept": 0.0}
    classes = scores_file.class_table([f"c{k:03d}" for k in range(num_classes)], names, **(usual | columns))
    attributes = {
        "sample_rate": SAMPLE_RATE,
        "clip_seconds": 1.0,
        "hop_seconds": 1.0,
        "smooth_clips": 1,
        "feature": "logmel",
        "label_mode": "multi",
        "config": json.dumps({"offset_ratio": 0.7, "min_seconds": 0.0, "merge_gap_seconds": 0.0, **(config or {})}),
        "build": json.dumps({"audio_track": None, "compensate_delay": False}),
        "calibration": "none",
        "checkpoint": "runs/<b>/best.pt",
        "checkpoint_sha256": "0" * 64,
        "plan_sha256": "0" * 64,
        "scoring_sha256": "0" * 64,
        "source": source,
    }
    texts = {"video_id": [_ROOM], "file": [_ROOM * 8], "split": [""], "subject": [""], "scene": [""]}
    dtype = schema.video_dtype(**texts)
    num_clips = sum(len(starts) for *_, starts in recordings)
    path = folder / "scores.h5"
    with scores_file.writing(path, attributes, classes, dtype, len(recordings), num_clips) as writer:
        first = 0
        for number, (video_id, file, scores, starts) in enumerate(recordings):
            failed = isinstance(scores, str)
            row, clips = np.zeros(1, dtype), np.zeros(len(starts), schema.CLIP_DTYPE)
            row["video_id"], row["file"] = schema.encode(video_id), schema.encode(str(file))
            row["status"], row["error"] = (3, schema.encode(scores)) if failed else (1, b"")
            row["first_clip"], row["num_clips"] = first, len(starts)
            row["duration_seconds"] = max(starts, default=0) + 1.0 if len(starts) else 0
            clips["video"], clips["start_seconds"], clips["stop_seconds"] = number, starts, np.asarray(starts) + 1.0
            clips["status"] = 1
            writer.write("videos", number, row)
            known = fingerprint(file) if file and Path(file).is_file() else bytes(32)
            writer.write("fingerprints", number, np.frombuffer(known, "u1")[None])
            if not failed:
                writer.write("clips", first, clips)
                writer.write("scores", first, np.asarray(scores, "<f4"))
            first += len(starts)
    return path
