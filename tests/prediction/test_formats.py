"""Label files are read back by libraries that we did not write, whatever the classes are called."""

import io
import json
import warnings
from datetime import timedelta

import numpy as np
import pandas
import pympi
import pytest
import srt
import webvtt
from hypothesis import example, given, settings
from hypothesis import strategies as st
from praatio import textgrid

from egoaudio.config.predict import FORMATS
from egoaudio.errors import ConfigurationError, Status
from egoaudio.evaluation.calibration import Calibration
from egoaudio.evaluation.segments import SEGMENT_DTYPE, SegmentRules
from egoaudio.hdf5.schema import CLIP_DTYPE
from egoaudio.prediction.formats import render, require_available, suffix_of
from egoaudio.prediction.recording import Scored, describe
from egoaudio.prediction.result import Labelling, Prediction
from egoaudio.system.terminal import harmless, one_line

HOSTILE = (
    'a"b',
    "1\n\n2 --> 3",
    "<script>&amp;]]>",
    "tab\there",
    "=1+1",
    "",
    "Knocking on a door",
    "caf\u00e9\u2028x\x00",
    "\ud800",
)


def make_prediction(segments, names, file="videos/a b.mp4", duration=10.0):
    """Return a prediction with given segments ``(class_index, start, stop, score)``, whatever its scores."""
    count = len(names)
    rules = SegmentRules(np.ones(count), np.ones(count), Calibration.none(count))
    labelling = Labelling(tuple(f"c{index:03d}" for index in range(count)), tuple(names), rules, "runs/best.pt")
    video = describe("a b.mp4", file, Status.OK, duration_seconds=duration, sample_rate=44100)
    scored = Scored(file, video, bytes(32), np.zeros(0, CLIP_DTYPE), np.empty((0, count), np.float32))
    prediction = Prediction(scored, labelling)
    table = np.zeros(len(segments), SEGMENT_DTYPE)
    for row, (index, start, stop, score) in zip(table, segments, strict=True):
        row["class_index"], row["start_seconds"], row["stop_seconds"] = index, start, stop
        row["score"], row["mean_score"] = score, score / 2
    prediction.__dict__["segment_table"] = table  # where cached_property keeps it
    return prediction


def read_audacity(raw):
    rows = [line.split("\t") for line in raw.decode().splitlines()]
    return [(float(start), float(stop), *text.rsplit(" ", 1)) for start, stop, text in rows]


def read_raven(raw):
    frame = pandas.read_csv(io.BytesIO(raw), sep="\t", quoting=3, keep_default_na=False, dtype={"Name": str})
    assert list(frame.columns[:7]) == [
        "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
    ]  # fmt: skip
    assert (frame["High Freq (Hz)"] == 22050).all() and (frame["Begin File"] == "a b.mp4").all()
    columns = ("Begin Time (s)", "End Time (s)", "Name", "Score")
    return list(zip(*(frame[column] for column in columns), strict=True))


def read_textgrid(raw, folder):
    (folder / "a.TextGrid").write_bytes(raw)
    grid = textgrid.openTextgrid(str(folder / "a.TextGrid"), includeEmptyIntervals=True)
    for tier in grid.tiers:
        times = [(entry.start, entry.end) for entry in tier.entries]
        assert times[0][0] == 0 and times[-1][1] == grid.maxTimestamp == tier.maxTimestamp
        assert [stop for _, stop in times[:-1]] == [start for start, _ in times[1:]]
    found = [(entry, tier.name) for tier in grid.tiers for entry in tier.entries if entry.label]
    return [(entry.start, entry.end, name, entry.label) for entry, name in found]


def read_eaf(raw, folder):
    (folder / "a.eaf").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = pympi.Elan.Eaf(str(folder / "a.eaf"))
    assert document.media_descriptors[0]["MEDIA_URL"].startswith("file:///")
    return [
        (start / 1000, stop / 1000, tier, value.rsplit(" ", 1)[1])
        for tier in document.get_tier_names() for start, stop, value in document.get_annotation_data_for_tier(tier)
    ]  # fmt: skip


def _subtitle(start, stop, text):
    name, score = text.rsplit(" (", 1)
    return start, stop, name, score.removesuffix(")")


def read_srt(raw):
    cues = list(srt.parse(raw.decode()))
    return [_subtitle(cue.start / timedelta(seconds=1), cue.end / timedelta(seconds=1), cue.content) for cue in cues]


def read_webvtt(raw):
    cues = webvtt.from_string(raw.decode())
    unescape = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}
    found = []
    for cue in cues:
        text = cue.raw_text
        for escaped, letter in unescape.items():
            text = text.replace(escaped, letter)
        start, end = (pandas.Timedelta(time).total_seconds() for time in (cue.start, cue.end))
        found.append(_subtitle(start, end, text))
    return found


def read_rttm(raw):
    if not raw:
        return []
    frame = pandas.read_csv(io.BytesIO(raw), sep=" ", header=None, quoting=3, keep_default_na=False, dtype={7: str})
    assert frame.shape[1] == 10 and set(frame[0]) == {"SPEAKER"} and set(frame[1]) == {"a_b.mp4"}
    return list(zip(frame[3], frame[3] + frame[4], frame[7], frame[8], strict=True))


def read_json(raw):
    return [
        (one["start_seconds"], one["end_seconds"], one["name"], one["score"]) for one in json.loads(raw)["segments"]
    ]


def read_parquet(raw):
    frame = pandas.read_parquet(io.BytesIO(raw))
    return list(zip(*(frame[name] for name in ("start_seconds", "end_seconds", "name", "score")), strict=True))


def read(name, raw, folder):
    readers = {
        "audacity": read_audacity, "raven": read_raven, "srt": read_srt, "webvtt": read_webvtt, "rttm": read_rttm,
        "json": read_json, "parquet": read_parquet,
    }  # fmt: skip
    if name in ("textgrid", "eaf"):
        return {"textgrid": read_textgrid, "eaf": read_eaf}[name](raw, folder)
    return readers[name](raw)


def shown(name, text):
    """Return what a format makes of a class's name."""
    if name == "rttm":
        return "_".join(one_line(text).split()) or "_"
    if name in ("json", "parquet"):
        return text
    if name == "raven":
        return harmless(text)
    return one_line(text) or ("_" if name in ("textgrid", "eaf") else "")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back(name, tmp_path):
    names = ["Knocking on a door", "Running water", "Humming"]
    segments = [(0, 0.5, 2.25, 0.75), (2, 0.5, 9.0, 0.5), (0, 2.25, 3.0, 0.8125), (0, 4.0, 4.125, 0.9)]
    raw = render(name, make_prediction(segments, names))
    found = sorted(read(name, raw, tmp_path), key=lambda one: (one[0], one[2]))
    assert [one[2] for one in found] == [shown(name, names[index]) for index in (2, 0, 0, 0)] or [
        one[2] for one in found
    ] == [shown(name, names[index]) for index in (0, 2, 0, 0)]
    times = sorted((start, stop) for _, start, stop, _ in segments)
    np.testing.assert_allclose(sorted(one[:2] for one in found), times, atol=1e-6)
    scores = {(start, stop, names[index]): score for index, start, stop, score in segments}
    for start, stop, title, score in found:
        key = next(
            key for key in scores if key[:2] == (round(start, 6), round(stop, 6)) and shown(name, key[2]) == title
        )
        assert float(score) == pytest.approx(scores[key], abs=0.006)
    assert render(name, make_prediction(segments, names)) == raw  # the same bytes again


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_in_which_nothing_is_heard_has_a_file_all_the_same(name, tmp_path):
    assert read(name, render(name, make_prediction([], ["a", "b"])), tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(st.characters(), max_size=12), min_size=1, max_size=3))
@example(texts=HOSTILE)
@example(texts=["Same", "Same"])
def test_no_name_of_a_class_breaks_out_of_its_field(name, texts, tmp_path_factory):
    if name == "parquet":
        texts = [one_line(text) for text in texts]  # Arrow has no place for half a character
    segments = [(index, index + 0.5, index + 1.5, 0.5) for index in range(len(texts))]
    raw = render(name, make_prediction(segments, texts))
    if name == "json":
        texts = [json.loads(json.dumps(text).encode()) for text in texts]
        found = json.loads(raw.decode())["segments"]
        assert [one["start_seconds"] for one in found] == [segment[1] for segment in segments]
        return
    found = sorted(read(name, raw, tmp_path_factory.mktemp("label")))
    assert len(found) == len(texts)
    np.testing.assert_allclose([one[:2] for one in found], [segment[1:3] for segment in segments], atol=1e-6)
    if name not in ("textgrid", "eaf", "srt", "webvtt") or len(set(map(one_line, texts))) == len(texts):
        assert [str(one[2]).strip() for one in found] == [shown(name, text).strip() for text in texts]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a"])
def test_a_table_that_spreadsheets_open_holds_no_formula(text):
    prediction = make_prediction([(0, 0.5, 2.25, 0.75)], [text])
    prediction.scored.video["file"] = f"recordings/{text}.wav"
    for row in render("raven", prediction).decode().splitlines():
        assert not [cell for cell in row.split("\t") if cell.startswith(("=", "+", "-", "@"))]


def test_every_ending_is_a_formats_own():
    suffixes = [suffix_of(name) for name in FORMATS]
    assert len(set(suffixes)) == len(FORMATS)
    assert not [one for one in suffixes for other in suffixes if one != other and one.endswith(other)]


def test_parquet_without_its_library_is_told_before_anything_is_heard(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_available(("srt",))
    with pytest.raises(ConfigurationError, match="pip install pyarrow"):
        require_available(("srt", "parquet"))
