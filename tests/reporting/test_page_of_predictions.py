"""Time lines in a real browser: segments are the library's for any threshold, can be saved and listened to."""

import csv
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import chirp, make_media
from report_files import HOSTILE, SAMPLE_RATE, make_file, make_scores, wait_until

import egoaudio
from egoaudio.config.predict import SegmentConfig
from egoaudio.config.report import ReportConfig
from egoaudio.errors import ReportError
from egoaudio.evaluation.segments import make_rules
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.inputs import encode
from egoaudio.prediction.predict import predict_to_folder
from egoaudio.reporting.heard_section import _share_out
from egoaudio.reporting.names import clean
from egoaudio.reporting.timelines import TimelineMaker, read_rules

sys.path.insert(0, str(Path(__file__).parents[1] / "prediction"))
import small_models  # noqa: E402


def _wavering(generator, num_clips, num_classes=4):
    """Return scores that rise above 0.5 and fall again, float32 (num_clips, num_classes)."""
    phase = generator.uniform(0, 6, num_classes) + np.arange(num_clips)[:, None] * generator.uniform(
        0.2, 1.5, num_classes
    )
    return np.clip(0.5 + 0.5 * np.sin(phase) + 0.1 * generator.standard_normal((num_clips, num_classes)), 0, 1).astype(
        "f4"
    )


RULES = {
    "plain": {},
    "calibrated": {"slope": np.array([0.5, 1.0, 1.7, 3.0]), "intercept": np.array([-1.0, 0.3, 0.0, 2.0])},
    "merged": {"config": {"min_seconds": 1.5, "merge_gap_seconds": 2.0, "offset_ratio": 0.9}},
    "never claimed": {"onset": np.array([0.3, 0.5, np.inf, 0.9]), "offset": np.array([0.2, 0.5, np.inf, 0.4])},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Predictions without media, by their rules; clips that follow each other, leave gaps, overlap, have no sound."""
    generator = np.random.default_rng(0)
    folder, made = tmp_path_factory.mktemp("rules"), {}
    for name, settings in RULES.items():
        recordings = [(f"even {k}", f"even,{k}.wav", _wavering(generator, 20), np.arange(20) * 1.0) for k in range(3)]
        gaps = np.cumsum(generator.choice([1.0, 1.0, 2.5, 0.5], 30))
        recordings.append(("uneven", "uneven.wav", _wavering(generator, 30), gaps))
        mute = _wavering(generator, 12)
        mute[4:6] = np.nan
        recordings += [("mute", "mute.wav", mute, np.arange(12) * 1.0), ("broken", "broken.wav", "no sound in it", [])]
        made[name] = make_scores(folder / name, recordings, **settings)
    return made


def _expected(path, share=None):
    """Return the segments as the library finds them, ``[(file, start, stop, class id, score, mean)]``."""
    found = []
    with ScoresFile(path) as scores:
        rules = read_rules(scores)
        if share is not None:
            config = SegmentConfig(
                threshold=share,
                **{name: scores.config[name] for name in ("offset_ratio", "min_seconds", "merge_gap_seconds")},
            )
            rules = make_rules(config, None, scores.num_classes, scores.smooth_clips, rules.calibration)
        for video, row in enumerate(scores.video_table):
            rows = scores.rows_of(video)
            clips = scores.clip_table[rows]
            for one in rules.find(np.array(scores.scores[rows]), clips["start_seconds"], clips["stop_seconds"]):
                identity = scores.class_table["class_id"][one["class_index"]].decode()
                times = one["start_seconds"], one["stop_seconds"]
                found.append((row["file"].decode(), *times, identity, one["score"], one["mean_score"]))
    return found


def _saved(page):
    """Return the rows of the file that the page saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save these segments as CSV").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", RULES)
def test_segments_are_those_of_the_library_for_any_threshold(visit, folders, tmp_path, name):
    egoaudio.report(folders[name].parent, output=tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    counts = []
    for share in (None, 0.2, 0.5, 0.8):
        if share is not None:
            page.locator("#threshold").fill(str(round(100 * share)))
        header, *rows = _saved(page)
        assert header == "file,start_seconds,end_seconds,class_id,name,score,mean_score,checkpoint".split(",")
        expected = _expected(folders[name], share)
        assert [(row[0], row[3]) for row in rows] == [(file, identity) for file, _, _, identity, *_ in expected]
        numbers = np.array([[float(row[k]) for k in (1, 2, 5, 6)] for row in rows]).reshape(-1, 4)
        wanted = np.array([(start, stop, score, mean) for _, start, stop, _, score, mean in expected]).reshape(-1, 4)
        np.testing.assert_allclose(numbers, wanted, atol=2e-6)
        counts.append(len(rows))
        assert page.locator("#segment-count").inner_text() == f"{len(rows)} segments"
        assert page.locator(".lane .segments rect").count() == len(rows)
    assert len(set(counts)) > 2
    page.locator("#threshold-own").check()
    assert page.locator("#segment-count").inner_text() == f"{counts[0]} segments"


def test_tracks_follow_each_other_as_they_are_heard(folders):
    with ScoresFile(folders["plain"]) as scores:
        for timeline in filter(None, map(TimelineMaker(scores, None).make, range(scores.num_videos))):
            begins = [track.segments[0].start_seconds if track.segments else np.inf for track in timeline.tracks]
            assert begins == sorted(begins) and np.isfinite(begins[0])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, ["0 s", "0.1 s", "0.2 s"]),
        (20.81, ["0 s", "5 s", "10 s", "15 s", "20 s"]),
        (150, ["0:00", "0:30", "1:00", "1:30", "2:00", "2:30"]),
        (3600 * 8, ["0:00 h", "2:00 h", "4:00 h", "6:00 h", "8:00 h"]),
    ],
)
def test_an_axis_has_round_times(folders, seconds, words):
    with ScoresFile(folders["plain"]) as scores:
        made = replace(TimelineMaker(scores, None).make(0), duration_seconds=seconds)
    assert [text for _, text in made.ticks] == words
    shares = [share for share, _ in made.ticks]
    assert shares[0] == 0 and shares[-1] <= 100 and np.allclose(np.diff(shares), shares[1], atol=0.002)


def test_what_is_shown_without_the_script_are_the_same_segments(visit, folders, tmp_path):
    egoaudio.report(folders["plain"].parent, output=tmp_path / "page.html")
    bare = visit(tmp_path / "page.html", java_script_enabled=False)
    assert bare.locator(".lane .segments rect").count() == len(_expected(folders["plain"]))
    assert bare.locator(".segment-table tbody tr").count() == len(_expected(folders["plain"]))
    assert bare.locator(".controls:visible").count() == 0


def test_on_paper_nothing_waits_for_a_click(visit, folders, tmp_path):
    egoaudio.report(folders["plain"].parent, output=tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    assert page.locator("fieldset").is_visible()
    page.emulate_media(media="print")
    waiting = page.locator("nav, input, button:not(th button), fieldset")
    assert waiting.count() > 3 and not any(waiting.nth(number).is_visible() for number in range(waiting.count()))


def test_names_of_strangers_stay_text(visit, tmp_path):
    recordings = [(name, "", _wavering(np.random.default_rng(k), 9), np.arange(9.0)) for k, name in enumerate(HOSTILE)]
    make_scores(tmp_path / "<u>heard", [*recordings, (HOSTILE[0], "", HOSTILE[1], [])])
    egoaudio.report(tmp_path / "<u>heard", output=tmp_path / "page.html")
    page = visit(tmp_path / "page.html", 400, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    shown = page.locator("main").inner_text()
    for name in HOSTILE:
        assert clean(name) in shown
    assert page.locator("main u").count() == 0 and f"not heard: {clean(HOSTILE[1])}" in shown
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert clean(HOSTILE[0]) in page.locator(".segment-table").first.inner_text()
    rows = _saved(page)
    assert {row[4] for row in rows[1:]} <= {clean(name) for name in HOSTILE[:4]} | {
        f"'{clean(name)}" for name in HOSTILE[:4]
    }


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Predictions of two sounds of 8 s, and a file in which the first one is annotated."""
    folder = tmp_path_factory.mktemp("heard")
    recordings = []
    for number in range(2):
        path = folder / f"sound{number}.wav"
        make_media(
            path, 8.0, "pcm_f32le", sample_rate=SAMPLE_RATE, channels=1, sound=chirp(SAMPLE_RATE, 8.0, 300 + number)
        )
        recordings.append((path.name, path, _wavering(np.random.default_rng(number), 8), np.arange(8.0)))
    scores = make_scores(folder / "predictions", recordings)
    file = make_file(folder / "ego.h5", 2, 8, hostile=False)
    with h5py.File(file, "r+") as opened, ScoresFile(scores) as made:
        prints = opened["fingerprints"][()]
        prints[1] = made.fingerprints[0]  # the first recording is the second video
        opened["fingerprints"][...] = prints
        instances = opened["instances"][()]
        instances[:2] = [(1, 2, 1.5, 4.0), (0, 1, 0.0, 8.0)]
        opened["instances"][...] = instances
    return folder, file


@pytest.fixture(scope="module")
def heard_page(heard):
    folder, file = heard
    egoaudio.report(folder / "predictions", file, output=folder / "page.html")
    return folder / "page.html"


def test_a_click_on_a_time_line_is_heard_from_there(visit, heard_page):
    page = visit(heard_page)
    time = "document.getElementById('player').currentTime"
    recording = page.locator(".recording").first
    strip = recording.locator(".strip img")
    strip.scroll_into_view_if_needed()
    strip.click(position={"x": 0.75 * strip.bounding_box()["width"], "y": 10})
    wait_until(page, f"{time} > 6.05")
    assert page.evaluate("document.getElementById('player').duration") == pytest.approx(8, abs=0.05)
    assert recording.locator(".cursor").count() == 1
    recording.get_by_role("button", name="Play sound0.wav").click()
    assert page.evaluate("document.getElementById('player').paused")
    lane = page.locator(".recording").nth(1).locator(".lane:visible").first
    lane.click(position={"x": 0.25 * lane.bounding_box()["width"], "y": 5})
    wait_until(page, f"{time} > 2.05 && {time} < 4")
    page.keyboard.press("Escape")


def test_the_keyboard_alone_reaches_any_place(visit, heard_page):
    page = visit(heard_page)
    recording = page.locator(".recording").first
    recording.get_by_label("Position in sound0.wav, in seconds").fill("5")
    wait_until(page, "document.getElementById('player').currentTime > 5.05")
    page.keyboard.press("Escape")
    recording.locator("summary").click()
    row = recording.locator(".segment-table tbody tr").last
    start = float(row.locator("td").first.inner_text().removesuffix(" s"))
    row.get_by_role("button", name="Play from there").press("Enter")
    wait_until(page, f"document.getElementById('player').currentTime > {start + 0.02}")
    page.keyboard.press("Escape")


def test_what_is_annotated_stands_beneath(heard, visit, heard_page):
    folder, file = heard
    page = visit(heard_page)
    first, second = page.locator(".recording").all()
    lane = first.locator(".lane[data-column='2']")
    assert lane.locator(".truth").count() == 1
    label = lane.locator("svg").get_attribute("aria-label")
    assert label.startswith(f"c002 {clean(HOSTILE[2])}: heard ") and label.endswith("; annotated 1.50 s to 4.00 s")
    assert second.locator(".truth").count() == 0 and "not annotated" in second.locator("h4").inner_text()
    with ScoresFile(folder / "predictions" / "scores.h5") as scores, egoaudio.open(file) as opened:
        made = [TimelineMaker(scores, opened).make(video) for video in range(2)]
    assert {track.column: track.truth for track in made[0].tracks if track.truth} == {2: ((1.5, 4.0),)}


def test_recordings_that_are_gone_are_shown_without_sound(heard, tmp_path):
    folder, _ = heard
    moved = tmp_path / "moved"
    moved.mkdir()
    with ScoresFile(folder / "predictions" / "scores.h5") as scores:
        recordings = [
            (
                row["video_id"].decode(),
                moved / row["video_id"].decode(),
                np.array(scores.scores[scores.rows_of(video)]),
                np.arange(8.0),
            )
            for video, row in enumerate(scores.video_table)
        ]
    path = make_scores(tmp_path / "predictions", recordings)
    made = egoaudio.report(path, output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (
        "Give their folder as `videos`" in made.notes[0]
        and "Give their folder as --videos" in text
        and "<img" not in text
    )
    again = egoaudio.report(path, output=tmp_path / "page.html", videos=folder)
    assert again.notes == () and (tmp_path / "page.html").read_text().count("<img ") == 2


def test_a_recording_that_was_replaced_is_not_heard(heard, tmp_path):
    sound = tmp_path / "sound.wav"
    make_media(sound, 8.0, "pcm_f32le", sample_rate=SAMPLE_RATE, channels=1)
    path = make_scores(
        tmp_path / "predictions", [("sound.wav", sound, _wavering(np.random.default_rng(0), 8), np.arange(8.0))]
    )
    make_media(sound, 8.0, "pcm_f32le", sample_rate=SAMPLE_RATE, channels=1, sound=0.1 * chirp(SAMPLE_RATE, 8.0))
    with pytest.warns(UserWarning, match="is another file than was scored"):
        made = egoaudio.report(path, output=tmp_path / "page.html")
    assert len(made.notes) == 1


def test_a_file_that_was_scored_is_heard_from_its_waveform(tmp_path):
    file = make_file(tmp_path / "ego.h5", 2, 8, hostile=False)
    recordings = [(f"V{k:04d}EGO", "", _wavering(np.random.default_rng(k), 8), np.arange(8.0)) for k in range(2)]
    path = make_scores(tmp_path / "predictions", recordings, source=str(file))
    made = egoaudio.report(path, file, output=tmp_path / "page.html", config=ReportConfig(examples=0))
    text = (tmp_path / "page.html").read_text()
    assert made.notes == () and text.count('"recording-') >= 4 and "not annotated" not in text


def test_a_page_of_long_recordings_keeps_to_its_size(heard, tmp_path):
    folder, _ = heard
    generator = np.random.default_rng(0)
    recordings = []
    for number in range(3):
        path = tmp_path / f"long{number}.wav"
        noise = 0.1 * generator.standard_normal(SAMPLE_RATE * 60).astype(np.float32)
        make_media(path, 60.0, "pcm_f32le", sample_rate=SAMPLE_RATE, channels=1, sound=noise)
        recordings.append((path.name, path, _wavering(generator, 60), np.arange(60.0)))
    path = make_scores(tmp_path / "predictions", recordings)
    made = egoaudio.report(path, output=tmp_path / "page.html", config=ReportConfig(max_mb=0.4))
    assert made.num_bytes <= 400_000
    assert any(re.match("Of . recordings a stretch can be listened to", note) for note in made.notes)


def test_short_recordings_are_kept_whole_and_long_ones_share(heard):
    folder, _ = heard
    with ScoresFile(folder / "predictions" / "scores.h5") as scores:
        one = TimelineMaker(scores, None).make(0)
    several = [
        replace(one, video=k, duration_seconds=seconds, best_seconds=seconds / 2)
        for k, seconds in enumerate((10.0, 3600.0, 7200.0))
    ]
    shares = {timeline.video: stretch for timeline, stretch in _share_out(several, 1_000_000)}
    assert shares[0] == (0.0, 10.0)
    lengths = [stop - start for start, stop in shares.values()]
    assert lengths[1] == pytest.approx(lengths[2]) and 30 < lengths[1] < 3600
    assert shares[1][0] == pytest.approx(1798) and shares[1][1] < 3600
    cost = sum(4 / 3 * encode.expected_bytes(length) for length in lengths)
    assert 700_000 < cost + 180_000 <= 1_000_100
    assert _share_out(several, 10_000) == []


def test_two_folders_of_predictions_are_refused(heard):
    folder, _ = heard
    with pytest.raises(ReportError, match="are two files of scores: a report is of one"):
        egoaudio.report(folder / "predictions", folder / "predictions" / "scores.h5", output=folder / "never.html")
    assert not (folder / "never.html").exists()


def test_the_saved_file_is_segments_csv(visit, tmp_path, kept_workers):
    """Made by the command, from a model, and from the same folder."""
    inputs = small_models.make_videos(tmp_path / "media")
    path = small_models.make_file(inputs, tmp_path / "ego.h5")
    checkpoint = small_models.make_checkpoint(path, tmp_path / "run", changes={"thresholds": [0.45] * 13})
    predict_to_folder(checkpoint, inputs.videos, tmp_path / "out")
    egoaudio.report(tmp_path / "out", output=tmp_path / "page.html")
    wanted = (tmp_path / "out" / "segments.csv").read_text(encoding="utf-8")
    saved = io.StringIO()
    csv.writer(saved, lineterminator="\n").writerows(_saved(visit(tmp_path / "page.html")))
    rows = [list(csv.reader(io.StringIO(text))) for text in (wanted, saved.getvalue())]
    assert len(rows[0]) > 5 and sorted(row[:5] for row in rows[0]) == sorted(row[:5] for row in rows[1])
