"""Irregularities of the sound of a build's recordings, in lines for its report.

In: ``/videos`` of a finished file. A pause is not a fault of the file, so it is counted apart from what could not be
decoded.
"""

import numpy as np

from egoaudio.errors import Status
from egoaudio.hdf5.schema import ADDED_VIDEO_COLUMNS, SILENT_DB


def describe_sound(videos: np.ndarray, sample_rate: int, silent_hint: str = "") -> list[str]:
    """Return lines about silence, losses and clocks.

    Parameters
    ----------
    videos : ndarray
        Rows of ``/videos``; of an older file, without the later columns.
    sample_rate : int
        Of the file, in Hz.
    silent_hint : str
        What can be done about silent videos.
    """
    there = videos.dtype.names or ()
    columns = {name: videos[name] if name in there else np.zeros(len(videos)) for name in ADDED_VIDEO_COLUMNS}
    sounding = (videos["status"] == Status.OK) & ("peak_db" in there)
    cancelling = sounding & (columns["cancels_out"] > 0)
    silent = sounding & (columns["peak_db"] < SILENT_DB) & ~cancelling
    gaps, lost = columns["gap_samples"], videos["lost_samples"] - columns["gap_samples"]
    lines = []
    if silent.any():
        lines.append(
            f"silent   silent videos: {silent.sum():,}, such as {_first(videos, silent)}: muted, or digital silence"
            f"{silent_hint}"
        )
    if cancelling.any():
        lines.append(
            f"silent   videos whose channels cancel out: {cancelling.sum():,}, such as {_first(videos, cancelling)}: "
            "left is -right, so their mean is silent"
        )
    if gaps.any():
        lines.append(
            f"pauses   {gaps.sum() / sample_rate:.2f} s without any packets (paused, or muted), {_where(videos, gaps)}"
        )
    if (lost > 0).any():
        lines.append(
            f"lost     {lost.sum() / sample_rate:.2f} s could not be decoded or placed, {_where(videos, lost)}"
        )
    if columns["clock_jumps"].any():
        jumps = columns["clock_jumps"]
        lines.append(
            f"clock    {jumps.sum():,.0f} jumps of the timestamps that nothing confirms: sound was joined there, "
            f"{_where(videos, jumps)}"
        )
    if columns["bad_parts"].any():
        parts = columns["bad_parts"]
        lines.append(f"parts    {parts.sum():,.0f} parts of files could not be read, {_where(videos, parts)}")
    return lines


def _first(videos: np.ndarray, chosen: np.ndarray) -> str:
    return videos["video_id"][int(np.argmax(chosen))].decode(errors="replace")


def _where(videos: np.ndarray, amounts: np.ndarray) -> str:
    """Return in how many videos there is any, and which has most."""
    return f"in {(amounts > 0).sum():,} videos; most in {_first(videos, amounts)}"
