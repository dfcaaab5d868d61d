"""New recordings -> what is heard in them: find, hear, score, keep, write.

``predict`` yields each recording as soon as it has its scores and stores nothing; ``predict_to_folder`` is the command,
whose folder holds the scores of what is done: the same call resumes after any stop, to the same bytes, and recordings
that were added meanwhile cost themselves alone. Nothing here touches samples.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from egoaudio.config.predict import PredictConfig
from egoaudio.errors import ConfigurationError, PredictionError
from egoaudio.hdf5 import reader
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.prediction import output as writing
from egoaudio.prediction.find import Recordings, find_annotated, find_recordings, is_hdf5
from egoaudio.prediction.formats import require_available
from egoaudio.prediction.messages import PredictionProgress
from egoaudio.prediction.predictor import Predictor, load_predictor
from egoaudio.prediction.recording import Scored
from egoaudio.prediction.report import PredictionReport, make_report
from egoaudio.prediction.result import Labelling, Prediction
from egoaudio.prediction.score import score_files, score_media
from egoaudio.prediction.store import Store, opened
from egoaudio.system import allocator, files, lock
from egoaudio.system.files import StrPath, StrPaths, as_paths

_OURS = ("scores.h5", "segments.csv")
_READERS = 8  # that wait for a network file system at once


@dataclass(frozen=True)
class Media:
    """What is to be heard, as it was given: files and folders, or annotations and the folder of their videos."""

    paths: tuple[StrPath, ...] = ()
    annotations: tuple[StrPath, ...] = ()
    videos: StrPath | None = None
    classes: StrPath | None = None
    follow_links: bool = False

    @cached_property
    def scored_files(self) -> tuple[StrPath, ...]:
        """The egoaudio files whose features are to be scored as they are; none where recordings are to be heard."""
        scored = tuple(path for path in self.paths if is_hdf5(path))
        others = [path for path in self.paths if path not in scored]
        if scored and others:
            raise ConfigurationError(
                f"{scored[0]} is an egoaudio file, whose features are scored as they are, and {others[0]} is not: give "
                "them to two commands, each with an `output` of its own"
            )
        return scored

    def find(self) -> Recordings:
        """Return the recordings that are there."""
        if self.annotations or self.videos is not None:
            if self.paths:
                raise ConfigurationError(
                    "media and `annotations` were given: give files and folders, or annotations with `videos`"
                )
            if not self.annotations or self.videos is None:
                raise ConfigurationError(
                    "`annotations` and `videos` belong together: the CSV names the videos, the folder holds them"
                )
            return find_annotated(self.annotations, self.videos, self.classes, self.follow_links)
        if self.classes is not None:
            raise ConfigurationError(
                f"`classes={os.fspath(self.classes)!r}` has no effect without `annotations`: a model has its classes"
            )
        if self.scored_files:
            with reader.open(self.scored_files) as file:
                found = Recordings()
                for row in file.video_table:
                    found.add(row["video_id"].decode(errors="replace"), "")
                return found
        return find_recordings(self.paths, self.follow_links)


def predict(
    checkpoint: StrPath,
    media: StrPaths = (),
    config: PredictConfig | None = None,
    *,
    annotations: StrPaths = (),
    videos: StrPath | None = None,
    classes: StrPath | None = None,
    like: StrPath | None = None,
    follow_links: bool = False,
    num_workers: int = 1,
    timeout_seconds: float = 600.0,
    device: str | None = None,
) -> Iterator[Prediction]:
    """Hear recordings with a trained model, and yield what it says of each.

    Parameters
    ----------
    checkpoint : path
        Of a run's ``best.pt`` or ``last.pt``.
    media : path or sequence of path
        Files, and folders of them; or egoaudio files, whose features are scored as they are.
    config : PredictConfig or None
        Every option; the defaults if not given.
    annotations : path or sequence of path
        CSVs that name the videos to hear, in place of ``media``.
    videos : path, optional
        Folder of the annotations' videos.
    classes : path, optional
        Class list of the annotations.
    like : path, optional
        The egoaudio file that the checkpoint of an earlier version was trained on.
    follow_links : bool
        Whether symbolic links may lead out of a folder.
    num_workers : int
        Processes that decode.
    timeout_seconds : float
        A recording without progress for this long is marked as failed.
    device : str, optional
        The GPU if there is one.

    Yields
    ------
    Prediction
        In the order in which they finish; one that failed says why.

    Raises
    ------
    EgoAudioError
        For a checkpoint, a file or an option that cannot be used, media that are not there, or memory that does not
        suffice.

    Examples
    --------
    >>> import egoaudio
    >>> recordings = list(egoaudio.predict("runs/example/best.pt", "ego.h5"))
    >>> len(recordings), list(recordings[0].segments.columns[:4])
    (6, ['file', 'start_seconds', 'end_seconds', 'class_id'])
    """
    config = PredictConfig() if config is None else config
    given = Media(as_paths(media), as_paths(annotations), videos, classes, follow_links)
    recordings = given.find()
    predictor = load_predictor(checkpoint, config, scored_files=given.scored_files, like=like, device=device)
    labelling = _labelling(predictor)
    for scored in _score(predictor, given, recordings, range(len(recordings)), num_workers, timeout_seconds):
        yield Prediction(scored, labelling)


def predict_to_folder(
    checkpoint: StrPath,
    media: StrPaths,
    output: StrPath,
    config: PredictConfig | None = None,
    *,
    annotations: StrPaths = (),
    videos: StrPath | None = None,
    classes: StrPath | None = None,
    like: StrPath | None = None,
    follow_links: bool = False,
    num_workers: int = 1,
    timeout_seconds: float = 600.0,
    device: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
) -> PredictionReport:
    """Hear recordings with a trained model, and write scores, segments and label files into a folder.

    Parameters
    ----------
    output : path
        The folder; made if it is not there. What it has of the same model and options is kept.
    force : bool
        Start anew, and replace what is there.
    retry_failed : bool
        Hear recordings again that failed before.
    checkpoint, media, config, annotations, videos, classes, like, follow_links, num_workers, timeout_seconds, device
        As for ``predict``.

    Returns
    -------
    PredictionReport

    Raises
    ------
    EgoAudioError
        As ``predict``; or an output that is an input, or holds other scores.

    Examples
    --------
    >>> import egoaudio
    >>> report = egoaudio.predict_to_folder("runs/example/best.pt", "ego.h5", "heard")
    >>> report.num_recordings, report.scores.name, report.segments.name
    (6, 'scores.h5', 'segments.csv')
    """
    config = PredictConfig() if config is None else config
    given = Media(as_paths(media), as_paths(annotations), videos, classes, follow_links)
    require_available(config.output.formats)
    recordings = given.find()
    if not os.fspath(output):  # which would be the working folder
        raise PredictionError("`output=''`: its name is empty, as that of a variable that is not set: name a folder")
    folder = Path(output)
    _check_output(folder, given, (checkpoint, like), config.output.formats)
    predictor = load_predictor(checkpoint, config, scored_files=given.scored_files, like=like, device=device)
    _make(folder)
    with lock.held(folder):
        for name in _OURS:
            files.remove_leftovers(folder / name)
        with opened(folder, predictor.scoring_sha256, force) as store:
            keys = [recordings.key(number) for number in range(len(recordings))]
            todo = store.missing(keys, _fingerprints(given, recordings), retry_failed)
            started = time.monotonic()
            for scored in _score(predictor, given, recordings, todo, num_workers, timeout_seconds):
                store.add(scored)
            seconds = time.monotonic() - started
            num_segments, class_seconds = _write(folder, predictor, given, recordings, store, config)
            store.finish()
    return make_report(
        folder,
        _labelling(predictor),
        num_known=len(recordings) - len(todo),
        num_segments=num_segments,
        class_seconds=class_seconds,
        formats=config.output.formats,
        seconds=seconds,
        num_workers=num_workers,
        notes=predictor.notes,
    )


def _write(
    folder: Path, predictor: Predictor, given: Media, recordings: Recordings, store: Store, config: PredictConfig
) -> tuple[int, np.ndarray]:
    """Write what the scores of all recordings come to; return the number of segments, and the seconds of each class."""
    labelling = _labelling(predictor)

    def predictions() -> Iterator[Prediction]:
        for number, name in enumerate(recordings.names):
            scored = store.read(recordings.key(number))
            named = {"video_id": name, "file": recordings.files[number] or scored.video["file"]}
            yield Prediction(replace(scored, video=scored.video | named), labelling)

    writing.write_scores(folder / "scores.h5", predictions, predictor, config, "\n".join(as_paths(given.scored_files)))
    labelled = writing.with_label_files(folder, config.output.formats, predictions())
    return writing.write_segments(folder / "segments.csv", labelled, predictor.num_classes)


def _labelling(predictor: Predictor) -> Labelling:
    return Labelling(tuple(predictor.class_ids), tuple(predictor.class_names), predictor.rules, predictor.checkpoint)


def _score(
    predictor: Predictor,
    given: Media,
    recordings: Recordings,
    numbers: Sequence[int],
    num_workers: int,
    timeout_seconds: float,
) -> Iterator[Scored]:
    """Yield recordings with their scores."""
    if predictor.scorer.device.type == "cpu":
        allocator.reuse_blocks()  # the next batch takes the same blocks again
    clips = predictor.build.clips
    hop_seconds = min(clips.step_seconds, clips.clip_seconds)  # what lies between clips is not heard
    if given.scored_files:
        with reader.open(given.scored_files) as file:
            sizes = {number: int(file.video_table["num_clips"][number]) for number in numbers}
        with PredictionProgress(sizes, hop_seconds) as progress:
            found = score_files(predictor, given.scored_files, numbers, progress)
            for number, scored in zip(numbers, found, strict=True):
                yield replace(scored, key=recordings.key(number))
        return
    every = list(recordings.sizes())
    order = sorted(numbers, key=lambda number: -every[number])  # longest first: no straggler at the end
    with PredictionProgress({number: every[number] for number in order}, hop_seconds) as progress:
        workers = max(1, min(num_workers, len(order)))
        yield from score_media(
            predictor, recordings, order, progress, num_workers=workers, timeout_seconds=timeout_seconds
        )


def _fingerprints(given: Media, recordings: Recordings) -> Iterable[bytes]:
    """Return the fingerprint of each recording as it is now."""
    if given.scored_files:
        with reader.open(given.scored_files) as file:
            return [row.tobytes() for row in file.fingerprints]
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(fingerprint, recordings.files))


def _check_output(folder: Path, given: Media, inputs: Iterable[StrPath | None], formats: Iterable[str]) -> None:
    """Refuse an output that is no folder, or would replace what is read."""
    if folder.exists() and not folder.is_dir():
        raise PredictionError(f"`output={str(folder)!r}`: is a file: name a folder")
    for path in (*given.paths, given.videos):
        if path is not None and folder.exists() and os.path.exists(path) and os.path.samefile(path, folder):
            raise PredictionError(
                f"`output={str(folder)!r}`: holds the recordings: give a folder of its own, such as {folder / 'heard'}"
            )
    read = [*given.paths, *given.annotations, given.classes, *inputs]
    for name in formats:
        writing.require_inside(folder, folder / name)
        if (folder / name).exists() and not (folder / name).is_dir():
            raise PredictionError(
                f"{folder / name}: is no folder, and label files go there: move it away, or give another `output`"
            )
    for name in (*_OURS, "scores.partial"):
        try:
            files.check_output(folder / name, read)
        except OSError as error:
            raise PredictionError(f"{folder / name}: {error.strerror}") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictionError(
            f"`output={str(folder)!r}`: cannot be made a folder ({error.strerror}): "
            "give the name of one that can be written to"
        ) from error
