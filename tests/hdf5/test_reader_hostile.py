"""A file that is damaged, foreign or hostile is refused in words, and never crashes the process that opens it."""

import os
import re
import struct
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
import synthetic

import egoaudio
from egoaudio.errors import StoreError
from egoaudio.hdf5 import reader, safe_access, schema

FEATURES = {"spectrogram": (32, 65), "mfcc": (32, 20)}


@pytest.fixture
def whole(tmp_path):
    return synthetic.make_file(tmp_path / "a.h5", features=FEATURES, failed=(2,), silent_clips=(5, 6), num_videos=6)


# --------------------------------------------------------------------------------------------------------- refusals


def refuse(path, words):
    with pytest.raises(StoreError, match=words) as error:
        egoaudio.open(path)
    assert str(path) in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    refuse(tmp_path / "a.h5", "cannot be opened: No such file")
    refuse(tmp_path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "is not a regular file")
    refuse("/dev/zero", "is not a regular file")
    with pytest.raises(StoreError, match="null"):
        egoaudio.open("a\0.h5")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"RIFF" * 5000, b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(5000)]
)
def test_what_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    refuse(tmp_path / "a.h5", "is not an HDF5 file|cannot be opened as HDF5: damaged, or cut short")


def test_file_replaced_while_it_is_opened_is_refused(whole, tmp_path):
    """Structure of one file and rows of another would be nonsense."""
    other = synthetic.make_file(tmp_path / "b.h5", features=FEATURES)
    with (
        open(other, "rb") as raw,
        pytest.raises(StoreError, match="was replaced while it was being opened: open it again"),
    ):
        safe_access.open_hdf5(whole, raw)


def test_foreign_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spectrogram"] = np.zeros((3, 4, 5), "f4")
    refuse(tmp_path / "a.h5", "is HDF5, but not an egoaudio file")


def attribute(name, value):
    def edit(file):
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return edit


def dataset(name, *shape, dtype="f4", **options):
    def edit(file):
        del file[name]
        if shape:
            file.create_dataset(name, shape, dtype, **options)

    return edit


def link(name, value):
    def edit(file):
        if name in file:
            del file[name]
        file[name] = value

    return edit


def virtual(file):
    del file["mfcc"]
    layout = h5py.VirtualLayout((60, 32, 20), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "mfcc", (60, 32, 20))
    file.create_virtual_dataset("mfcc", layout)


def group_instead(file):
    del file["labels"]
    file.create_group("labels")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (attribute("format", "other"), "not an egoaudio file"),
        (attribute("format", None), "not an egoaudio file"),
        (
            attribute("format_version", 2),
            "has format version 2, and this egoaudio reads version 1: use the egoaudio that wrote it",
        ),
        (attribute("format_version", "1"), "has format version 1"),
        (attribute("complete", None), "root attribute complete is 'missing'"),
        (attribute("sample_rate", -5), "sample_rate -5"),
        (attribute("sample_rate", "16000"), "root attribute sample_rate is '16000'"),
        (attribute("clip_seconds", np.nan), "clip_seconds nan"),
        (attribute("config", "no json"), "its structure cannot be read"),
        (attribute("config", "[" * 100_000), "its structure cannot be read"),
        (attribute("config", "[1]"), "config holds no options"),
        (attribute("config", np.arange(5)), "root attribute config is"),
        (dataset("clips"), "/clips is missing"),
        (dataset("clips", 60), "/clips has type float32"),
        (dataset("videos", 6, dtype=[("video_id", "S4")]), "/videos has type"),
        (dataset("labels", 60, 4, dtype="u1"), r"/labels has shape \(60, 4\), expected \(60, 5\)"),
        (dataset("labels", 300, dtype="u1"), r"/labels has shape \(300,\), expected \(60, 5\)"),
        (dataset("mfcc", 59, 32, 20), r"/mfcc has shape \(59, 32, 20\), expected \(60, any, any\)"),
        (dataset("mfcc", 60, 32, 20, dtype="i4"), "/mfcc has type int32"),
        (dataset("mfcc", 60, 32, 20, dtype=h5py.string_dtype()), "/mfcc has type object"),
        (dataset("mfcc", 60, 32, 20, dtype=h5py.ref_dtype), "/mfcc has type object"),
        (dataset("checksums/mfcc"), "/checksums/mfcc is missing"),
        (dataset("statistics/mfcc", 6, 2, dtype="f8"), r"/statistics/mfcc has shape \(6, 2\), expected \(6, 3\)"),
        (dataset("axes/frequency_hz", 3, 3, dtype="f8"), "/axes/frequency_hz has shape"),
        (group_instead, "/labels is not a dataset"),
        (link("mfcc", h5py.ExternalLink("/etc/passwd", "/")), "/ links 'mfcc' to what may be any file: refused"),
        (link("extra", h5py.ExternalLink("other.h5", "/")), "/ links 'extra' to what may be any file: refused"),
        (link("checksums", h5py.ExternalLink("other.h5", "/")), "links 'checksums'"),
        (link("axes/mel_hz", h5py.ExternalLink("other.h5", "/x")), "/axes links 'mel_hz'"),
        (link("mfcc", h5py.SoftLink("/spectrogram")), "links 'mfcc'"),
        (link("mfcc", h5py.SoftLink("/mfcc")), "links 'mfcc'"),
        (
            dataset("mfcc", 60, 32, 20, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
            "/mfcc has its data in another file",
        ),
        (
            dataset("clips", 60, dtype=schema.CLIP_DTYPE, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
            "/clips has its data in another file",
        ),
        (virtual, "/mfcc has its data in another file"),
    ],
)
def test_what_is_not_as_the_format_says_is_refused(whole, edit, words):
    with h5py.File(whole, "r+", libver=("v110", "v110")) as file:
        edit(file)
    refuse(whole, words)


def test_a_few_bytes_that_claim_to_be_terabytes_are_not_read(tmp_path, whole):
    with h5py.File(whole, "r+", libver=("v110", "v110")) as file:
        for name, shape, dtype in (
            ("clips", (10**12,), schema.CLIP_DTYPE),
            ("labels", (10**12, 5), "u1"),
            ("mfcc", (10**12, 32, 20), "f4"),
        ):
            del file[name]
            file.create_dataset(name, shape, dtype, chunks=(1000, *shape[1:]), compression="gzip")
        del file["spectrogram"]
    with egoaudio.open(whole) as file:
        for read in (lambda: file.clip_table, lambda: file.labels, lambda: file.usable, lambda: file.clips):
            with pytest.raises(StoreError, match=r"claims [\d,]+ bytes and holds 0; the file is damaged"):
                read()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(whole, share):
    os.truncate(whole, int(os.path.getsize(whole) * share))
    refuse(whole, "not an HDF5 file|damaged, or cut short")


def lookup3(data):
    """Return Bob Jenkins' hash as HDF5 uses it for its metadata: what a careful attacker would put right."""
    mask, rotate = 0xFFFFFFFF, lambda x, k: ((x << k) | (x >> (32 - k))) & 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    while len(data) > 12:
        x, y, z = struct.unpack("<III", data[:12])
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for k in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & mask) ^ rotate(c, k)
            c = (c + b) & mask
            a, b, c = b, c, a
        data = data[12:]
    if data:
        x, y, z = struct.unpack("<III", data.ljust(12, b"\0"))
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for k in (14, 11, 25, 16, 4, 14, 24):
            c = ((c ^ b) - rotate(b, k)) & mask
            a, b, c = b, c, a
        a, b, c = c, a, b
    return c


def header_end(raw, head):
    """Return where an object header's checksum stands."""
    flags = raw[head + 5]
    body = head + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    size_bytes = 1 << (flags & 3)
    return body + size_bytes + int.from_bytes(raw[body : body + size_bytes], "little")


def move_array(path, extent, offset):
    """Change where the header of an array says that it lies, and put the header's checksum right."""
    raw = bytearray(open(path, "rb").read())
    for found in re.finditer(re.escape(struct.pack("<Q", extent.offset)), raw[: extent.offset + 10**6]):
        head = raw.rfind(b"OHDR", 0, found.start())
        end = header_end(raw, head)
        if found.start() < end and struct.unpack("<I", raw[end : end + 4])[0] == lookup3(bytes(raw[head:end])):
            raw[found.start() : found.end()] = struct.pack("<Q", offset)
            raw[end : end + 4] = struct.pack("<I", lookup3(bytes(raw[head:end])))
            open(path, "wb").write(raw)
            return
    raise AssertionError("no header names this place")


@pytest.mark.parametrize("name", ["mfcc", "spectrogram", "clips", "statistics/mfcc"])
def test_array_beyond_the_end_of_the_file_is_refused_before_it_is_mapped(whole, name):
    with reader.open(whole) as file:
        extent = file.extents[name]
    size = os.path.getsize(whole)
    move_array(whole, extent, size - extent.row_bytes)
    h5py.File(whole).close()  # HDF5 itself is content
    # HDF5 checks contiguous arrays by itself; chunks it would find missing only when they are read.
    chunked = f"/{name} ends at byte [0-9,]+, the file at {size:,}: it was cut short"
    refuse(whole, chunked if name in FEATURES else f"{chunked}|/{name} is missing or cannot be opened")


@pytest.mark.parametrize("offset", [2**40, 2**63 - 4096, 2**64 - 8192, 2**64 - 1])
@pytest.mark.parametrize("name", ["mfcc", "clips"])
def test_array_at_an_absurd_place_never_crashes(whole, name, offset):
    with reader.open(whole) as file:
        extent = file.extents[name]
    move_array(whole, extent, offset)
    with warnings.catch_warnings(), pytest.raises(StoreError):
        warnings.simplefilter("ignore")
        with egoaudio.open(whole) as file:
            np.array(file["mfcc"][:]), file.clips  # noqa: B018
            assert not file.is_mapped(name)
            raise StoreError("2**64 - 1 is HDF5's word for data that were never written: zeros")


# -------------------------------------------------------------------------------------------------------- mutations

MUTATE = """
import json, re, struct, sys, warnings
sys.path[:0] = json.loads(sys.argv[1])
import numpy as np
from test_reader_hostile import header_end, lookup3
from egoaudio.hdf5 import reader, summary
from egoaudio.errors import EgoAudioError
warnings.simplefilter("ignore")
original = open(sys.argv[2], "rb").read()
with reader.open(sys.argv[2]) as file:
    expected = {name: np.array(file[name]) for name in file.features}
path = sys.argv[3]
headers = [found.start() for found in re.finditer(b"OHDR", original)]
for seed in range(100):
    generator = np.random.default_rng(seed)
    raw = bytearray(original)
    used = len(raw.rstrip(b"\\0"))
    where = int(generator.integers(0, used if seed % 3 else 4096))
    kind = "header" if seed >= 50 else ("flip", "cut", "zeros", "noise", "move", "insert", "many")[seed % 7]
    if kind == "header":  # as somebody would who knows the format: the checksum is put right
        head = headers[int(generator.integers(len(headers)))]
        end = header_end(raw, head)
        for place in generator.integers(head + 7, end, int(generator.integers(1, 4))):
            raw[place] = int(generator.choice([0, 1, 127, 128, 255, raw[place] ^ 4]))
        raw[end : end + 4] = struct.pack("<I", lookup3(bytes(raw[head:end])))
    elif kind == "flip":
        raw[where] ^= 1 << int(generator.integers(8))
    elif kind == "cut":
        del raw[where:]
    elif kind == "zeros":
        raw[where : where + 512] = bytes(512)
    elif kind == "noise":
        raw[where : where + 64] = generator.bytes(64)
    elif kind == "move":
        other = int(generator.integers(0, used))
        raw[where : where + 256] = raw[other : other + 256]
    elif kind == "insert":
        raw[where:where] = generator.bytes(int(generator.integers(1, 100)))
    else:
        for place in generator.integers(0, used, 30):
            raw[place] = int(generator.integers(256))
    open(path, "wb").write(raw)
    try:
        with reader.open(path) as file:
            problems = summary.verify(file)
            summary.summary(file), summary.failed(file), file.videos, file.usable, file.axes
            outcome = "verify" if problems else "same"
            for name in file.features:  # what verify lets pass is as it was
                assert problems or kind == "header" or np.array_equal(file[name][:], expected[name]), name
    except EgoAudioError as error:
        outcome = "refused"
        assert path in str(error), error
    print(seed, kind, outcome, flush=True)
"""


def test_a_hundred_mutated_files_crash_nothing(tmp_path, whole):
    """Fifty at random, fifty with lies in their headers and right checksums, in a process of its own.

    It must come through all of them: no signal, no hang, no other exception.
    """
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, repr(sys.path).replace("'", '"'), whole, str(tmp_path / "mutated.h5")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr)
    outcomes = [line.split()[2] for line in done.stdout.splitlines()]
    assert len(outcomes) == 100
    outcomes = outcomes[:50]
    # The others changed bytes between the arrays, or a text or time that nothing vouches for.
    assert outcomes.count("refused") + outcomes.count("verify") >= 25, outcomes
