"""Files to make pages of, with names of strangers, and what Playwright cannot do on pages that forbid eval."""

import h5py
import numpy as np
import pytest
import synthetic

from egoaudio.hdf5 import schema

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
    """Wait until a JavaScript expression is true; Playwright's own way to wait needs eval, which pages of ours forbid."""
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
