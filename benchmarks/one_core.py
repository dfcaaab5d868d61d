"""Building on one core: our own work from MP4 to rows on disk, and the same by what a user would pick instead.

In: paths of MP4s. Out: callables without arguments for ``measuring.interleave``; each does its work on all paths but
``notebook``, which does one. lhotse's manifests are made outside of the measured time, in its favour (for an MP4 its
reader decodes the whole file for one), and so is our file's layout.

lhotse 1.33 hands every MP4 to torchaudio's ``io``, which torchaudio 2.11 no longer has. Where torchcodec works it is
given that, else ``audioread`` with the ``ffmpeg`` that moviepy brings; torchcodec was seen at 1.4 times the speed.
"""

import functools
import os
import shutil

import numpy as np

from egoaudio.builder import extract, feature_stream, pool, prepare
from egoaudio.builder.jobs import Jobs
from egoaudio.builder.plan import gather
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import offsets
from egoaudio.inputs import decoder

SAMPLE_RATE = 16000


def decode(paths):
    """Decode, mix and resample: the floor."""
    for path in paths:
        for _ in decoder.Decoder(path, SAMPLE_RATE):
            pass


def lay_out(inputs, config, path):
    """Lay a file out as a build does; return what ``extract_all`` needs."""
    gathered = gather(inputs, config)
    with pool.start_workers(1, 600.0) as workers:
        prepare.lay_out(path, gathered, config, workers)
    with EgoAudioFile(path) as file:
        jobs = list(Jobs(file, gathered, config, np.arange(file.num_videos)))
    return path, offsets(path), config, jobs


def extract_all(path, extents, config, jobs):
    """Do all of a worker's work, in this process; return the seconds of each stage."""
    outcomes = [extract.extract(path, extents, config, job) for job in jobs]
    assert all(outcome.status == 1 for outcome in outcomes)
    return {stage: sum(outcome.stage_seconds[stage] for outcome in outcomes) for stage in feature_stream.STAGES}


def notebook(path, scratch):
    """Do one video as the notebook did: moviepy, a WAV, second by second noisereduce, MFCC and STFT; store nothing."""
    import librosa
    import moviepy
    import noisereduce

    clip = moviepy.VideoFileClip(str(path))
    clip.audio.write_audiofile(str(scratch / "sound.wav"), logger=None)
    clip.close()
    samples, sample_rate = librosa.load(scratch / "sound.wav", sr=SAMPLE_RATE)
    for start in range(0, len(samples) - sample_rate + 1, sample_rate):
        second = noisereduce.reduce_noise(y=samples[start : start + sample_rate], sr=sample_rate)
        librosa.feature.mfcc(y=second, sr=sample_rate, n_mfcc=20)
        librosa.power_to_db(np.abs(librosa.stft(second)) ** 2)


def write_wavs(paths, folder):
    """Write each video's sound as 16 kHz mono WAV, so that who reads it need not resample; return the paths."""
    from scipy.io import wavfile

    folder.mkdir()
    wavs = [folder / f"{path.stem}.wav" for path in paths]
    for path, wav in zip(paths, wavs, strict=True):
        samples = np.concatenate(list(decoder.Decoder(path, SAMPLE_RATE)))
        wavfile.write(wav, SAMPLE_RATE, (samples * 32767).astype(np.int16))
    return wavs


def prepare_lhotse(scratch):
    """Make it possible for lhotse to read MP4s; return with which of its backends."""
    import lhotse  # noqa: F401

    try:
        import torchcodec  # noqa: F401

        return "TorchcodecBackend"
    except (ImportError, RuntimeError, OSError):  # not there, or FFmpeg's libraries are not
        import audioread
        import imageio_ffmpeg

        tools = scratch / "tools"
        tools.mkdir()
        (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
        audioread.available_backends(flush_cache=True)  # librosa has looked before
        return "AudioreadBackend"


def lhotse_recordings(paths, backend):
    """Return lhotse's manifests, at 16 kHz."""
    from lhotse import Recording
    from lhotse.audio.backend import audio_backend

    with audio_backend(backend):
        recordings = [Recording.from_file(path) for path in paths]
    return [one if one.sampling_rate == SAMPLE_RATE else one.resample(SAMPLE_RATE) for one in recordings]


def lhotse_fbank(recordings, backend, folder, cut_first):
    """Compute lhotse's fbank and store it, for each second by itself or for recordings that are cut afterwards."""
    from lhotse import CutSet, Fbank, LilcomChunkyWriter
    from lhotse.audio.backend import audio_backend

    shutil.rmtree(folder, ignore_errors=True)
    cuts = CutSet.from_cuts(recording.to_cut() for recording in recordings)
    if cut_first:
        cuts = cuts.cut_into_windows(1.0).to_eager()
    with audio_backend(backend):
        cuts = cuts.compute_and_store_features(
            Fbank(), folder, storage_type=LilcomChunkyWriter, num_jobs=1, progress_bar=False
        )
    return cuts if cut_first else cuts.cut_into_windows(1.0).to_eager()


def peers(paths, scratch):
    """Return the peers that work here, after a try each, and what is to be said of the others.

    Returns
    -------
    rivals : dict of str to (callable, int)
        What does the work, and on how many videos.
    missing : dict of str to str
    """
    rivals, missing = {}, {}

    def offer(name, num_videos, run):
        try:
            run()
            rivals[name] = run, num_videos
        except ImportError as error:
            missing[name] = f"not installed ({error.name})"
        except Exception as error:  # a peer that fails here is a result; what it says is shown
            missing[name] = f"failed here ({type(error).__name__}: {' '.join(str(error).split())[:60]})"

    offer("the notebook's way", 1, lambda: notebook(paths[0], scratch))
    try:
        backend = prepare_lhotse(scratch)
    except ImportError as error:
        return rivals, missing | {"lhotse's fbank": f"not installed ({error.name})"}
    wavs = write_wavs(paths, scratch / "wavs")
    sources = (
        (wavs, "default", "WAVs made before", len(wavs)),
        (paths, backend, f"the same MP4s ({backend.removesuffix('Backend')})", 1),
    )
    for files, reader, source, few in sources:
        manifests = functools.lru_cache(1)(
            functools.partial(lhotse_recordings, files, reader)
        )  # made inside ``offer``, where it may fail
        for cut_first, order, num_videos in ((True, "windows first", few), (False, "whole recordings", len(files))):

            def run(manifests=manifests, num_videos=num_videos, reader=reader, cut_first=cut_first):
                return lhotse_fbank(manifests()[:num_videos], reader, scratch / "lhotse", cut_first)

            offer(f"lhotse's fbank, {order}, from {source}", num_videos, run)
    return rivals, missing
