"""Building: clips a second with denoising, spectrogram and MFCC, beside the notebook's way, lhotse, and decoding alone.

Makes generated 30 s videos (480p H.264, AAC 44.1 kHz stereo) and times whole builds with 1, 2 and all workers, on as many
videos and on twice as many; the notebook's way (moviepy -> WAV -> librosa, per second noisereduce, MFCC and STFT); lhotse's
fbank against our ``logmel``, both without denoising; PyAV decoding alone.

    python benchmarks/build.py [--videos 40] [--repeats 5] [--output build.json]
"""

import argparse
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import shutil  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import measuring  # noqa: E402
import numpy as np  # noqa: E402

from egoaudio import build as stories  # noqa: E402
from egoaudio import extraction, media  # noqa: E402
from egoaudio.configuration import BuildConfig, DenoiseConfig, FeatureConfig  # noqa: E402
from egoaudio.plan import Inputs  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

SECONDS = 30
DENOISED = BuildConfig()
LOGMEL = BuildConfig(denoise=DenoiseConfig(mode="none"), features=FeatureConfig(features=("logmel",)))


def make_videos(folder, num_videos):
    """Write videos and a generic CSV; four are different, the others their copies."""
    (folder / "videos").mkdir(parents=True)
    lines = ["video,start,end,label"]
    for number in range(num_videos):
        path = folder / "videos" / f"v{number:04d}.mp4"
        if number < 4:
            generator = np.random.default_rng(number)
            instances = demo_data.draw_instances(generator, SECONDS)
            demo_data.write_video(path, demo_data.synthesise(generator, SECONDS, instances), SECONDS, width=854, height=480)
        else:
            shutil.copyfile(folder / "videos" / f"v{number % 4:04d}.mp4", path)
        lines.append(f"v{number:04d},0,10,sound")
    (folder / "all.csv").write_text("\n".join(lines))
    return Inputs((str(folder / "all.csv"),), str(folder / "videos"))


def notebook(path, scratch):
    """Do one video as the notebook did."""
    import librosa
    import moviepy
    import noisereduce

    clip = moviepy.VideoFileClip(str(path))
    clip.audio.write_audiofile(str(scratch / "sound.wav"), logger=None)
    clip.close()
    samples, sample_rate = librosa.load(scratch / "sound.wav", sr=16000)
    for start in range(0, len(samples) - sample_rate + 1, sample_rate):
        second = noisereduce.reduce_noise(y=samples[start : start + sample_rate], sr=sample_rate)
        librosa.feature.mfcc(y=second, sr=sample_rate, n_mfcc=20)
        librosa.power_to_db(np.abs(librosa.stft(second)) ** 2)


def lhotse_features(paths, scratch):
    """Compute lhotse's fbank of every second and store it."""
    from lhotse import CutSet, Fbank, LilcomChunkyWriter, Recording

    shutil.rmtree(scratch / "lhotse", ignore_errors=True)
    cuts = CutSet.from_cuts(Recording.from_file(path).resample(16000).to_cut() for path in paths)
    cuts = cuts.cut_into_windows(1.0).to_eager()
    cuts.compute_and_store_features(Fbank(), scratch / "lhotse", storage_type=LilcomChunkyWriter, num_jobs=1)


def write_wavs(paths, folder):
    """Write each video's sound as a 44.1 kHz mono WAV for those who need one."""
    from scipy.io import wavfile

    folder.mkdir()
    wavs = []
    for path in paths:
        samples = np.concatenate(list(media.Decoder(path, 44100)))
        wavs.append(folder / f"{path.stem}.wav")
        wavfile.write(wavs[-1], 44100, (samples * 32767).astype(np.int16))
    return wavs


def decode(paths):
    """Decode and resample only: the floor."""
    for path in paths:
        for _ in media.Decoder(path, 16000):
            pass


def ours(paths, config):
    """Do all of our work but the writing, in this process."""
    for number, path in enumerate(paths):
        samples = round(media.probe(path).duration_seconds * 16000)
        extraction.rehearse(config, extraction.Job(number, str(path), 0, samples))


class _Watch:
    """Sample the private memory of this process's children."""

    def __init__(self):
        self.peak_mb, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.05):
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid():
                        lines = (entry / "smaps_rollup").read_text().splitlines()
                        private = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
                        self.peak_mb = max(self.peak_mb, private / 1024)
                except (OSError, ValueError, IndexError):
                    continue


def whole_build(inputs, config, output, num_workers):
    """Build once; return wall seconds of the filling, and the parent's processor seconds."""
    output.unlink(missing_ok=True)
    started = time.process_time()
    report = stories.build(inputs, config, output, num_workers=num_workers)
    return report.elapsed, time.process_time() - started, report


def main(num_videos, repeats, output):
    import contextlib
    import io

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        scratch = Path(scratch)
        inputs, twice = make_videos(scratch / "n", num_videos), make_videos(scratch / "2n", 2 * num_videos)
        paths = sorted((scratch / "n" / "videos").iterdir())[:4]
        seconds = len(paths) * SECONDS
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        rivals = {"decoding alone": lambda: decode(paths), "egoaudio": lambda: ours(paths, DENOISED), "egoaudio logmel": lambda: ours(paths, LOGMEL)}
        missing, wavs = [], write_wavs(paths, scratch / "wavs")
        for name, rival in {
            "notebook": lambda: notebook(paths[0], scratch),
            "lhotse from MP4": lambda: lhotse_features(paths, scratch),
            "lhotse from WAV": lambda: lhotse_features(wavs, scratch),
        }.items():
            try:
                rival()
                rivals[name] = rival
            except ImportError as error:
                missing.append(f"{name}: not installed ({error})")
            except Exception as error:
                missing.append(f"{name}: failed here ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
        runs = measuring.interleave(rivals, repeats)
        os.sched_setaffinity(0, cores)
        speed = {name: (SECONDS if name == "notebook" else seconds) / measuring.median(times) for name, times in runs.items()}

        def ratio(name, other):
            return f"{speed[name] / speed[other]:.1f}" if other in speed else "not measured"

        measured = [[name, f"{value:,.0f}"] for name, value in speed.items()]
        measuring.table(["one core, without start-up", "clips/s"], measured + [[line, "-"] for line in missing])
        rows = [
            ["denoised, against the notebook's way", ratio("egoaudio", "notebook"), "9", "15"],
            ["logmel, against lhotse from the same MP4s", ratio("egoaudio logmel", "lhotse from MP4"), "2", "4"],
            ["logmel from MP4s, against lhotse from ready WAVs", ratio("egoaudio logmel", "lhotse from WAV"), "1", "1.5"],
            ["denoised, time as a multiple of decoding alone (at most)", ratio("decoding alone", "egoaudio"), "3.5", "2.5"],
        ]
        builds = {"1 worker": (inputs, 1), "2 workers": (inputs, 2), "2 workers, twice the videos": (twice, 2)}
        times, parents, peak, stages = {name: [] for name in builds}, {name: [] for name in builds}, 0.0, []
        for _ in range(repeats):
            for name, (which, num_workers) in builds.items():
                with _Watch() as watch:
                    wall, parent, report = whole_build(which, DENOISED, scratch / "out.h5", num_workers)
                times[name].append(wall)
                peak = max(peak, watch.peak_mb)
                parents[name].append(parent)
                if name == "1 worker":
                    stages.append(report.stage_seconds)
        middle = {name: statistics.median(values) for name, values in times.items()}
        parent_ms = 1e3 * (statistics.median(parents["2 workers, twice the videos"]) - statistics.median(parents["2 workers"])) / num_videos
        growth = middle["2 workers, twice the videos"] / middle["2 workers"]
        rows += [
            ["2 workers against 1", f"{middle['1 worker'] / middle['2 workers']:.2f}", "1.85", "1.95"],
            ["parent's processor time for one more video, ms (at most)", f"{parent_ms:.1f}", "3", "1"],
            ["private memory of a process below the build, MB, peak (at most)", f"{peak:.0f}", "120", "90"],
            ["twice the videos, times the time", f"{growth:.2f}", "2.1", ""],
        ]
        measuring.table(["what", "measured", "bar", "goal"], rows)
        clips = num_videos * SECONDS
        speeds = [[name, f"{clips * (2 if 'twice' in name else 1) / value:,.0f}"] for name, value in middle.items()]
        measuring.table(["whole build, start of the workers included", "clips/s"], speeds)
        per_clip = {stage: 1e3 * statistics.median(one[stage] for one in stages) / clips for stage in extraction.STAGES}
        measuring.table(["stage, one worker", "ms a clip"], [[stage, f"{value:.2f}"] for stage, value in per_clip.items()])
        worker_ms = sum(per_clip.values())
        for hours in (1e3, 1e6):
            days = hours * 3600 * worker_ms / 1e3 / 32 / 86400
            parent_hours = hours * 120 * parent_ms / 1e3 / 3600
            print(f"{hours:,.0f} h of 30 s videos, 32 workers, {worker_ms:.2f} ms a clip: {days * 24:,.1f} h; the parent busy for {parent_hours:,.2f} h")
    measuring.write_json(output, speed=speed, runs=runs, builds=times, rows=rows, stages=per_clip, not_measured=missing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    main(arguments.videos, arguments.repeats, arguments.output)
