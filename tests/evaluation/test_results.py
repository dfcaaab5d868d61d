"""The table and the files of an evaluation: what they say, and that they are there whole or not at all."""

import csv
import io
import json
import os

import numpy as np
import pytest

from egoaudio.errors import TrainingError
from egoaudio.evaluation import charades, results
from egoaudio.evaluation.results import Evaluation, Score

NAN = float("nan")


def make_evaluation(video_ids=("AAAAAEGO", "BBBBBEGO", "CCCCCEGO"), frames=True, **changes):
    """Return an evaluation of 3 videos and 2 actions; the second video was not scored."""
    video_scores = np.array([[0.1, 1 / 3], [-np.inf, -np.inf], [1e-7, 1]], np.float32)
    fields = {
        "scores": {"top1": Score(0.5, 0.25, 0.75, 0.125), "map": Score(0.25), "video_map": Score(NAN, NAN, NAN, 0.5)},
        "per_class": {
            **{name: [0.5, NAN] for name in results.PER_CLASS_COLUMNS},
            "class_id": ["c000", "c001"],
            "name": ["Holding, some", "Größe"],
            "num_clips": [12, 0],
        },
        "num_clips": 1234,
        "num_videos": 3,
        "num_videos_scored": 2,
        "num_resamples": 500,
        "pool": "max",
        "video_ids": video_ids,
        "video_scores": video_scores,
        "frame_scores": np.repeat(video_scores, 25, axis=0) if frames else None,
        "notes": ("no prior: none",),
        "about": {"split": "test", "file": "ego.h5"},
    }
    return Evaluation(**{**fields, **changes})


def test_the_table_shows_score_interval_and_prior_in_per_cent():
    lines = str(make_evaluation()).splitlines()
    assert lines[0] == "test split: 1,234 clips of 3 videos (1 of them without sound), 2 classes"
    rows = {line[:34].strip(): line[34:].split() for line in lines[3:6]}
    assert rows["top-1 accuracy"] == ["50.0", "25.0", "to", "75.0", "12.5"]
    assert rows["mAP"] == ["25.0", "-", "-"]
    assert rows["video mAP (Charades classification"] == [")", "-", "-", "50.0"]
    assert lines[-1] == "note: no prior: none"


def test_scores_of_clips_alone_stand_in_a_column_of_their_own_where_neighbours_are_averaged():
    scores = {"top1": Score(0.5, 0.25, 0.75, 0.125, 0.375), "macro_f1": Score(0.25)}
    lines = str(make_evaluation(scores=scores, smooth_clips=2)).splitlines()
    assert lines[2].split() == ["per", "cent", "score", "95", "%", "interval", "prior", "unsmoothed"]
    assert lines[3].split()[2:] == ["50.0", "25.0", "to", "75.0", "12.5", "37.5"]
    assert lines[4].split()[2:] == ["25.0", "-", "-", "-"]
    assert "smoothed: each score is the mean over the clip and 2 clips before and after it" in "\n".join(lines)
    assert "smoothed" not in str(make_evaluation(scores=scores))


@pytest.mark.parametrize(
    ("audible", "title"),
    [
        ([True, True], "mAP, 2 audible classes"),
        ([True, False], "mAP, 1 audible class"),
        ([False] * 2, "mAP, 0 audible classes"),
    ],
)
def test_audible_classes_are_counted_in_the_table_and_named_in_json(audible, title):
    evaluation = make_evaluation()
    score = Score(0.5, 0.25, 0.75, 0.125) if any(audible) else Score(NAN)
    evaluation.scores["audible_map"] = score
    evaluation.per_class["audible"] = audible
    lines = str(evaluation).splitlines()
    line = next(line for line in lines if line.startswith(title + " "))
    assert line[34:].split() == (["50.0", "25.0", "to", "75.0", "12.5"] if any(audible) else ["-", "-", "-"])
    assert any(
        line.startswith("audible: classes whose interval of average precision is above the prior") for line in lines
    )
    assert max(map(len, lines)) <= 120
    named = json.loads(results.to_json(evaluation))["audible_classes"]
    assert named == [name for name, heard in zip(["c000", "c001"], audible, strict=True) if heard]


def test_json_is_valid_and_holds_null_for_what_is_not_defined():
    contents = json.loads(results.to_json(make_evaluation()), parse_constant=pytest.fail)
    assert contents["scores"]["top1"] == {"value": 0.5, "low": 0.25, "high": 0.75, "prior": 0.125, "unsmoothed": None}
    assert contents["scores"]["video_map"] == {
        "value": None,
        "low": None,
        "high": None,
        "prior": 0.5,
        "unsmoothed": None,
    }
    assert contents["audible_classes"] is None and contents["smooth_clips"] == 0
    assert (contents["split"], contents["num_clips"], contents["num_videos_scored"], contents["notes"]) == (
        "test",
        1234,
        2,
        ["no prior: none"],
    )


def test_csv_has_a_row_per_class_and_blanks_for_what_is_not_defined():
    rows = list(csv.DictReader(io.StringIO(results.to_csv(make_evaluation()))))
    assert [row["name"] for row in rows] == ["Holding, some", "Größe"]
    assert (rows[0]["average_precision"], rows[1]["average_precision"], rows[1]["num_clips"]) == ("0.5", "", "0")
    assert tuple(rows[0]) == results.PER_CLASS_COLUMNS


def read_submission(path, keys):
    """Read a submission as the official script does: columns by white space, the first ``keys`` of them the key."""
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    return {tuple(line[:keys]): np.array(line[keys:], dtype=np.float64) for line in lines}


def test_a_submission_of_videos_has_a_line_per_scored_video_and_loses_no_digit(tmp_path):
    evaluation = make_evaluation()
    results.write_submission(evaluation, tmp_path / "submission.txt")
    read = read_submission(tmp_path / "submission.txt", 1)
    assert list(read) == [("AAAAAEGO",), ("CCCCCEGO",)]
    np.testing.assert_array_equal(np.float32(read["AAAAAEGO",]), evaluation.video_scores[0])


def test_a_submission_of_frames_counts_them_from_1_to_25(tmp_path):
    results.write_submission(make_evaluation(), tmp_path / "submission.txt", frames=True)
    read = read_submission(tmp_path / "submission.txt", 2)
    assert list(read) == [(name, str(frame)) for name in ("AAAAAEGO", "CCCCCEGO") for frame in range(1, 26)]
    np.testing.assert_array_equal(np.float32(read["CCCCCEGO", "25"]), np.float32([1e-7, 1]))


def test_a_submission_scored_by_the_official_rules_gives_the_reported_map(tmp_path):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 157)).astype(np.float32), rng.random((40, 157)) < 0.1
    scores[5], labels[6] = -np.inf, False
    ids = tuple(f"V{number:04d}" for number in range(40))
    results.write_submission(make_evaluation(ids, video_scores=scores), tmp_path / "s.txt")
    lines = read_submission(tmp_path / "s.txt", 1)
    assert all(len(values) == 157 for values in lines.values())
    found = np.full((40, 157), -np.inf)
    for number, name in enumerate(ids):
        if (name,) in lines and labels[number].any():
            found[number] = lines[name,]
    reported = charades.mean_average_precision(charades.drop_empty_videos(scores, labels), labels)
    assert charades.mean_average_precision(found, labels) == reported


@pytest.mark.parametrize("video_id", ["A B", "", "A\tB", "A\n"])
def test_an_id_that_the_format_cannot_express_is_refused(tmp_path, video_id):
    with pytest.raises(TrainingError, match="white space"):
        results.write_submission(make_evaluation(("A", video_id, "C")), tmp_path / "s.txt")
    assert not list(tmp_path.iterdir())


def test_frames_that_nobody_scored_are_not_submitted(tmp_path):
    with pytest.raises(TrainingError, match="no submission of frames: no prior"):
        results.write_submission(make_evaluation(frames=False), tmp_path / "s.txt", frames=True)


def test_everything_is_written_into_a_folder_that_is_made(tmp_path):
    results.write(make_evaluation(), tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["evaluation.json", "per_class.csv", "per_class.png"]
    assert (tmp_path / "a" / "b" / "per_class.png").read_bytes().startswith(b"\x89PNG")


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    results.write_file(path, b"first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        results.write_file(path, b"second")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["evaluation.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(TrainingError, match="out.*could not be written"):
        results.write(make_evaluation(), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "?=1"),
        ("a\r=1", "a?=1"),
        ("a-b", "a-b"),
    ],
)
def test_no_cell_is_a_formula(text, cell):
    evaluation = make_evaluation()
    names = [text, *evaluation.per_class["name"][1:]]
    evaluation.per_class["name"] = names
    rows = list(csv.reader(io.StringIO(results.to_csv(evaluation))))
    assert rows[1][1] == cell
    assert all(cell[:1] not in "=+@" or cell == "" for row in rows for cell in row)
