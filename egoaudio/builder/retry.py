"""Try failed videos again, and keep what is done: a new file takes over the rows of the videos that succeeded.

In: a complete or unfinished file, and the same inputs. Out: ``OUTPUT.partial`` with those rows in it and the failed
videos planned, which ``build`` then fills as any other. The old file is only read, and stays as it is until the new one
takes its name. It has to be a new file: a failed video may have no rows in the old one, so every row after it moves.
"""

from pathlib import Path

import numpy as np

from egoaudio.builder.plan import Gathered, Plan, probe_recordings
from egoaudio.builder.pool import Workers
from egoaudio.builder.prepare import changed_videos, lay_out_plan, stored_names
from egoaudio.builder.recordings import Recordings
from egoaudio.builder.summary import FAILED
from egoaudio.builder.transfer import Move, take_over
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import differences, from_flat
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.schema import ADDED_VIDEO_COLUMNS, encode
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.inputs.videos import INSTANCE_COLUMNS, TEXTS
from egoaudio.system.progress import Progress


def retry(source: Path, partial_path: Path, gathered: Gathered, config: BuildConfig, workers: Workers) -> bool:
    """Lay out ``partial_path`` with the done videos of ``source``, and its failed ones planned.

    Returns
    -------
    bool
        False, and nothing is made, if no video has failed, or all of them would fail again.

    Raises
    ------
    BuildError
        ``source`` is a build of something else, besides the files of the videos that failed.
    """
    with EgoAudioFile(source) as file:
        failed = np.isin(file.video_table["status"], FAILED)
        if not failed.any():
            return False
        _require_same_but(failed, file, source, gathered, config)
        with Progress(int(failed.sum()), "probe") as progress:
            plan = probe_recordings(gathered, config, workers, progress, known=_known(file, failed))
        if not any(_is_worth_it(file, plan, number) for number in np.flatnonzero(failed).tolist()):
            return False
        lay_out_plan(partial_path, plan, config, before_it_appears=lambda draft: _take_over(file, draft))
    return True


def _require_same_but(
    failed: np.ndarray, file: EgoAudioFile, source: Path, gathered: Gathered, config: BuildConfig
) -> None:
    """Raise unless everything but the files of the failed videos is unchanged."""
    found = differences(from_flat(BuildConfig, file.config), config)
    lacking = [name for name in ADDED_VIDEO_COLUMNS if name not in (file.video_table.dtype.names or ())]
    if not found and lacking:
        found = [f"egoaudio {file.egoaudio_version} made it, and did not store {', '.join(lacking)} of a video"]
    if not found and not _same_annotations(file, gathered):
        found = ["the annotations have changed"]
    if not found:
        names = file.video_table["file"]
        moved = np.flatnonzero(~failed & (np.array(stored_names(gathered)) != names))
        if len(moved):
            example = names[moved[0]].decode(errors="replace")
            found = [f"files of videos that had not failed were moved or removed: {len(moved):,}, such as {example}"]
    if not found and (other := changed_videos(file, gathered, ~failed)):
        found = [other.strip()]
    if found:
        lines = "\n".join("  " + line for line in found)
        raise BuildError(
            f"{source} is a build of something else, so its failed videos cannot be tried again:\n{lines}\n"
            "Give `force=True` to start over"
        )


def _same_annotations(file: EgoAudioFile, gathered: Gathered) -> bool:
    """Return whether classes, videos and instances are those of the file."""
    videos = gathered.annotations.videos
    table, classes = file.video_table, file.class_table
    if len(videos) != file.num_videos or classes["class_id"].tolist() != [encode(text) for text in gathered.class_ids]:
        return False
    if any((table[name] != videos.table[name]).any() for name in TEXTS):
        return False
    instances, names = file.instances, [encode(text) for text in gathered.class_names]
    return (
        classes["name"].tolist() == names
        and np.array_equal(instances["video"], videos.numbers())
        and all(np.array_equal(instances[name], videos.instances[name]) for name, _ in INSTANCE_COLUMNS)
    )


def _is_worth_it(file: EgoAudioFile, plan: Plan, number: int) -> bool:
    """Return whether a failed video can be read now, or its file is not the one that failed."""
    changed = (plan.recordings.fingerprints[number] != file.fingerprints[number]).any()
    moved = stored_names(plan.gathered, slice(number, number + 1)) != [file.video_table["file"][number]]
    return plan.recordings[number].status in (Status.OK, Status.NO_AUDIO) or changed or moved


def _known(file: EgoAudioFile, failed: np.ndarray) -> Recordings:
    """Return what the file says about the sound of each video that has not failed."""
    recordings = Recordings.unknown(file.num_videos)
    recordings.put(0, Recordings.of_file(file), ~failed)
    return recordings


def _take_over(file: EgoAudioFile, draft: str) -> None:
    """Copy the rows of every video that is done into the draft."""
    moves = [Move(file, number, number) for number in np.flatnonzero(file.video_table["status"] == Status.OK).tolist()]
    extents = offsets(draft)
    with Progress(len(moves), "copy", unit="videos") as progress, RowWriter(draft, extents) as writer:
        for move, problem in take_over(moves, draft, extents):
            if problem:
                video_id = file.video_table["video_id"][move.source].decode(errors="replace")
                progress.write(f"warning: {file.path}: {video_id} is decoded again: {problem}")
            progress.advance(1)
        writer.sync()
