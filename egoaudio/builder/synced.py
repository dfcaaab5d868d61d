"""Which videos' rows are known to be on disk, in ``/synced``: power may fail after rows were written, before they are.

In: an unfinished file, opened, and a writer of its rows. Out: marks; and videos that are planned again, because they
have no mark and their rows are damaged.
"""

import numpy as np

from egoaudio.errors import Status
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import RowWriter


def sync(file: EgoAudioFile, writer: RowWriter) -> None:
    """Sync the file, then mark the videos that were done before."""
    done = (file.video_table["status"] != Status.PLANNED).astype(np.uint8)
    writer.sync()
    writer.write("synced", 0, done)


def repeat_torn(file: EgoAudioFile, writer: RowWriter) -> None:
    """Plan again the videos whose rows were lost between a sync and a power failure."""
    # Failed ones, too: the zeros over what their workers wrote may be lost.
    for number in np.flatnonzero((file.video_table["status"] != Status.PLANNED) & (file.synced == 0)):
        if integrity.verify_video(file, int(number)):
            plan_again(file, writer, int(number))


def plan_again(file: EgoAudioFile, writer: RowWriter, number: int) -> None:
    """Plan a video again: its rows have not been synced, and it is not done."""
    writer.write("synced", number, np.zeros(1, np.uint8))
    row = file.video_table[number : number + 1].copy()
    row["status"] = Status.PLANNED
    writer.write("videos", number, row)
