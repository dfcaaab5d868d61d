"""Media for the tests, made with PyAV: any container, codec and fault, in milliseconds."""

import contextlib
import os
import shutil
import signal
import struct
from fractions import Fraction

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tensors are small here

import av  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from egoaudio.builder import pool  # noqa: E402
from egoaudio.inputs import decoder as media  # noqa: E402

VIDEO_CODECS = {".avi": "mpeg4", ".asf": "mpeg4", ".webm": "libvpx", ".mpg": "mpeg2video", ".flv": "flv"}
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 6: "5.1"}


def pytest_configure(config):
    """Handle Ctrl-C for the tests of it: a script's & ignores it, and child processes inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Wait for no disk: whether bytes reached it no test can see, and thousands of small files take 4 ms each.

    That syncs happen, and when, is tested by counting the calls; processes that tests start wait as always.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def kept_workers():
    """Keep the worker processes from one test to the next: starting them takes longer than most builds here."""

    @contextlib.contextmanager
    def kept(num_workers, timeout_seconds):
        yield pool.Workers(num_workers, timeout_seconds)

    with pool.start_workers(1, 600.0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "start_workers", kept)
        yield


def chirp(sample_rate, seconds, low_hz=200.0, high_hz=3000.0, amplitude=0.5):
    """Return a sine of rising frequency, float32 ``(n,)``: the same sound at any rate, with no two places alike."""
    times = np.arange(round(sample_rate * seconds)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * (low_hz * times + (high_hz - low_hz) / seconds * times**2 / 2))).astype(
        np.float32
    )


def make_media(
    path,
    seconds=2.0,
    audio="aac",
    video=False,
    sample_rate=44100,
    channels=2,
    tracks=1,
    sound=None,
    start_seconds=0.0,
    edit=None,
    options=None,
    video_seconds=None,
    video_start_seconds=0.0,
):
    """Write a media file and return its path.

    Parameters
    ----------
    path : pathlib.Path
        Its suffix chooses the container.
    audio : str or None
        Codec; None writes no audio track.
    video : bool
        Whether a small video track comes first.
    tracks : int
        Audio tracks; the second one and later ones are silent.
    sound : ndarray, optional
        Float32 ``(n,)`` for all channels or ``(channels, n)``; the chirp if not given.
    start_seconds : float
        Timestamp of the first sample.
    edit : callable, optional
        Gets ``(index, packet)`` of the first audio track, and returns the packet to write, or None to leave it out.
    options : dict, optional
        For the muxer.
    video_seconds : float, optional
        Length of the video track; ``seconds`` if not given. It has 25 frames a second, 5 where it is longer than 10 s.
    video_start_seconds : float
        Timestamp of the first picture.
    """
    container = av.open(str(path), "w", options=options or {})
    if video:
        video_seconds = seconds if video_seconds is None else video_seconds
        rate = 25 if video_seconds <= 10 or path.suffix == ".mpg" else 5
        picture = container.add_stream(VIDEO_CODECS.get(path.suffix, "libx264"), rate=rate)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        if path.suffix == ".webm":
            picture.options = {"deadline": "realtime", "cpu-used": "8"}  # a third less time for the same timestamps
    streams = [container.add_stream(audio, rate=sample_rate) for _ in range(tracks if audio else 0)]
    for stream in streams:
        stream.layout = LAYOUTS[channels]
        if audio == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
    if video:
        for index in range(round(rate * video_seconds)):
            # Black: a new frame holds whatever was in memory, and so makes another file each time.
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), format="yuv420p")
            frame.pts, frame.time_base = index + round(rate * video_start_seconds), Fraction(1, rate)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
    for number, stream in enumerate(streams):
        samples = chirp(sample_rate, seconds) if sound is None else sound
        samples = np.broadcast_to(samples, (channels, samples.shape[-1])) * np.float32(number == 0)
        packets = []
        for start in range(0, samples.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 4096]), "fltp", LAYOUTS[channels]
            )
            frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
            frame.pts = start + round(start_seconds * sample_rate)
            packets += stream.encode(frame)
        for index, packet in enumerate(packets + stream.encode(None)):
            if edit is not None and number == 0:
                packet = edit(index, packet)
            if packet is not None:
                packet.stream = stream
                container.mux(packet)
    container.close()
    return path


def make_wav(path, samples, sample_rate, dtype="<f4", claims=None):
    """Write a WAV byte by byte, ``samples`` ``(n, channels)``; ``claims`` replaces header fields; return the path."""
    samples = np.atleast_2d(np.asarray(samples).T).T.astype(dtype)
    fields = {
        "format": 3 if dtype == "<f4" else 1,
        "channels": samples.shape[1],
        "sample_rate": sample_rate,
        "bytes": samples.nbytes,
        **(claims or {}),
    }
    width = samples.dtype.itemsize
    layout = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, fields["format"], fields["channels"], fields["sample_rate"],
        min(2**32 - 1, fields["sample_rate"] * samples.shape[1] * width), samples.shape[1] * width, 8 * width,
    )  # fmt: skip
    data = struct.pack("<4sI", b"data", fields["bytes"]) + samples.tobytes()
    path.write_bytes(
        struct.pack("<4sI4s", b"RIFF", min(2**32 - 1, 4 + len(layout) + 8 + fields["bytes"]), b"WAVE") + layout + data
    )
    return path


def decode_whole(path, sample_rate=16000):
    """Return all samples of a file, and its decoder; check what holds for every decoder."""
    decoder = media.Decoder(path, sample_rate)
    blocks = list(decoder)
    assert all(
        block.dtype == np.float32 and block.ndim == 1 and 0 < len(block) <= media.BLOCK_SAMPLES for block in blocks
    )
    samples = np.concatenate(blocks)
    assert len(samples) == decoder.num_samples
    assert np.abs(samples).max() <= 1.0
    return samples, decoder


GOOD_KINDS = {
    "mp4": {"video": True},
    "m4a": {},
    "mkv": {"audio": "libopus", "sample_rate": 48000, "video": True},
    "avi": {"audio": "libmp3lame", "video": True},
    "ts": {"video": True},
    "mpg": {"audio": "mp2", "video": True},
    "ogg": {"audio": "vorbis"},
    "flac": {"audio": "flac"},
    "wav": {"audio": "pcm_s16le"},
    "mp3": {"audio": "libmp3lame"},
    "flv": {"video": True},
    "mov": {"audio": "alac"},
    "wv": {"audio": "wavpack"},
}


@pytest.fixture(scope="session")
def good_files(tmp_path_factory):
    """One good file of two seconds for each of a dozen kinds, ``{name: path}``."""
    folder = tmp_path_factory.mktemp("good")
    return {kind: make_media(folder / f"good.{kind}", **settings) for kind, settings in GOOD_KINDS.items()}


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    path = shutil.which("chromium")
    if path is None:
        reason = "no Chromium to open pages in: apt-get install chromium"
        (pytest.fail if os.environ.get("EGOAUDIO_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a page; console messages and requests to other places fail the test at its end."""
    said, contexts = [], []

    def open_page(path, width=1400, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        own = path.resolve().as_uri()
        page.on("request", lambda request: request.url.startswith((own, "data:", "blob:")) or said.append(request.url))
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            said += ["a stranger's script ran"] if page.evaluate("'pwned' in window") else []
        context.close()
    assert said == []
