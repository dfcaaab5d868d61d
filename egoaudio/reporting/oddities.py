"""What looks wrong in a file: recordings that clip, are nearly silent or in two splits, silent classes.

In: an open egoaudio file. Out: ``Finding``s, each a sentence with the first few that it is about, the worst first.
Nothing here is certain to be a fault; it is what somebody should listen to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from egoaudio.builder.beyond import Beyond
from egoaudio.builder.sound import describe_sound
from egoaudio.builder.summary import describe_twins
from egoaudio.errors import Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs.annotations import NO_ACTION
from egoaudio.reporting import names
from egoaudio.reporting.levels import NEARLY_SILENT_DB, Levels

_FULL_SCALE_DB = -0.1  # a recording whose peak is above this was probably cut off there
_MOST_NAMES = 12
_SILENT_SHARE = 0.5  # of a class's clips that are nearly silent, from which on it is said


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong."""

    title: str
    detail: str
    """A sentence."""
    names: tuple[str, ...] = ()
    """The first few videos or classes that it is about."""
    num_names: int = 0
    """How many there are."""


def find_oddities(file: EgoAudioFile, levels: Levels | None) -> list[Finding]:
    """Return what looks wrong in a file; nothing where nothing does."""
    found = [
        *_not_complete(file),
        *_in_two_splits(file),
        *_loudness(file),
        *_losses(file),
        *_classes(file, levels),
        *_clips(file, levels),
    ]
    return [finding for finding in found if finding is not None]


def _not_complete(file: EgoAudioFile) -> Iterator[Finding]:
    if not file.complete:
        done = np.count_nonzero(file.video_table["status"] != Status.PLANNED)
        yield Finding(
            "Not complete",
            f"{done:,} of {file.num_videos:,} videos are done: run the same egoaudio-build again to finish the file.",
        )


def _in_two_splits(file: EgoAudioFile) -> Iterator[Finding]:
    videos = file.video_table
    twins = describe_twins(file)
    if twins:
        yield Finding("Recordings that are there twice", f"{twins}.")
    for column, title in (("video_id", "Videos in two splits"), ("subject", "Subjects in more than one split")):
        splits: dict[bytes, set[bytes]] = {}
        for name, split in zip(videos[column].tolist(), videos["split"].tolist(), strict=True):
            splits.setdefault(name, set()).add(split)
        both = [names.clean(name) for name, where in splits.items() if name and len(where) > 1]
        if both:
            noun = ("video" if column == "video_id" else "subject") + ("s are" if len(both) > 1 else " is")
            words = (
                "so scores of the test split are too high"
                if column == "video_id"
                else "so voices and homes are known to a model that is tested"
            )
            yield _named(title, f"{len(both):,} {noun} in both train and test, {words}.", both)


def _loudness(file: EgoAudioFile) -> Iterator[Finding]:
    videos = file.video_table
    if "peak_db" not in (videos.dtype.names or ()):
        return
    sounding = videos["status"] == Status.OK
    clipping = sounding & (videos["peak_db"] > _FULL_SCALE_DB)
    faint = sounding & (videos["rms_db"] < NEARLY_SILENT_DB)
    if clipping.any():
        yield _of_videos(
            file, clipping, "Recordings that reach full scale", "Their peaks are probably cut off: {} of {} with sound."
        )
    if faint.any():
        yield _of_videos(
            file,
            faint,
            "Recordings that are nearly silent",
            f"Below {NEARLY_SILENT_DB:g} dB on the whole: {{}} of {{}} with sound.",
        )


def _losses(file: EgoAudioFile) -> Iterator[Finding]:
    for line in describe_sound(file.video_table, file.sample_rate):
        title, words = line.split(maxsplit=1)
        yield Finding(f"Sound: {title}", f"{words}.")
    beyond = str(Beyond.of_file(file))
    if beyond:
        yield Finding("Annotations beyond the sound", f"{beyond}.")


def _classes(file: EgoAudioFile, levels: Levels | None) -> Iterator[Finding]:
    counts = file.count_classes()
    actions = _actions(file)
    annotated = (np.asarray(file.video_labels) == 1).any(axis=0)
    empty = counts == 0
    ids = names.class_names(file.class_table)
    mute = [ids[k] for k in np.flatnonzero(empty & annotated)]
    if mute:
        yield _named("Classes without any sound", "Annotated, but in no clip that has sound.", mute)
    never = [ids[k] for k in np.flatnonzero(empty & ~annotated & actions)]
    if never:
        yield _named("Classes that do not occur", "Named in the class list, and annotated in no video.", never)
    splits = file.video_table["split"][np.clip(file.clip_table["video"], 0, max(0, file.num_videos - 1))]
    trainable = file.trainable
    train, test = (trainable & (splits == name) for name in (b"train", b"test"))
    if train.any() and test.any():
        on_train, on_test = (file.labels[rows].any(axis=0) for rows in (train, test))
        unlearnt = [ids[k] for k in np.flatnonzero(on_test & ~on_train)]
        if unlearnt:
            yield _named("Classes that are tested, but not trained on", "They are in the test split alone.", unlearnt)
    if levels is not None:
        shares = actions * [
            np.mean(own < NEARLY_SILENT_DB) if len(own) else 0.0 for own in levels.of_class(file.labels)
        ]
        faint = [f"{ids[k]} ({shares[k]:.0%})" for k in np.argsort(shares)[::-1] if shares[k] >= _SILENT_SHARE]
        if faint:
            yield _named(
                "Classes that can hardly be heard",
                f"Of so many of their clips the level is below {NEARLY_SILENT_DB:g} dB: the label says that something "
                "happens, and there is no sound.",
                faint,
            )


def _clips(file: EgoAudioFile, levels: Levels | None) -> Iterator[Finding]:
    trainable = np.count_nonzero(file.trainable)
    unlabelled = np.count_nonzero(file.usable) - trainable
    if unlabelled > trainable:
        yield Finding(
            "More clips without labels than with them",
            f"{unlabelled:,} clips have sound, and the annotations say nothing about them.",
        )
    if levels is not None:
        labelled = file.labels[levels.rows][:, _actions(file)].any(axis=1) & (
            file.clip_table["labelled"][levels.rows] == 1
        )
        faint = labelled & (levels.rms_db < NEARLY_SILENT_DB)
        if faint.any():
            yield Finding(
                "Labelled clips that are nearly silent",
                f"{faint.sum():,} of {labelled.sum():,} labelled clips that were measured, "
                f"{faint.sum() / labelled.sum():.1%}.",
            )


def _actions(file: EgoAudioFile) -> np.ndarray:
    """Return which classes are actions, bool (num_classes,): all but ``no_action``, which is to be silent."""
    return file.class_table["class_id"] != NO_ACTION.encode()


def _of_videos(file: EgoAudioFile, chosen: np.ndarray, title: str, words: str) -> Finding:
    """Return a finding about the videos of a mask; ``words`` takes their number and that of the videos with sound."""
    videos = file.video_table
    ids = names.column(videos[chosen], "video_id")
    sounding = np.count_nonzero(videos["status"] == Status.OK)
    return _named(title, words.format(f"{len(ids):,}", f"{sounding:,}"), ids)


def _named(title: str, detail: str, whose: Sequence[str]) -> Finding:
    return Finding(title, detail, tuple(whose[:_MOST_NAMES]), len(whose))
