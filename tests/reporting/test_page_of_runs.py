"""Runs on a page: numbers are the evaluation's, names of strangers stay text, and it works in a real browser."""

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from report_files import HOSTILE, make_file, wait_until

import egoaudio
from egoaudio import cli
from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.evaluation.evaluate import score_split
from egoaudio.evaluation.results import TITLES
from egoaudio.hdf5 import reader
from egoaudio.reporting import comparison_section, run_section
from egoaudio.reporting.names import clean
from egoaudio.reporting.sources import find_sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file, and two runs that were trained on it: one for two epochs, one for a single one."""
    folder = tmp_path_factory.mktemp("runs")
    make_file(folder / "ego.h5", 20, 8, test_fraction=0.4)
    for name, epochs in (("<i>long", 2), ("short", 1)):
        config = from_flat(
            TrainConfig,
            {"model": "cnn-small", "epochs": epochs, "batch_size": 16, "context_clips": 0, "smooth_clips": 1},
        )
        egoaudio.train(folder / "ego.h5", folder / name, config, device="cpu")
    return folder


@pytest.fixture(scope="module")
def page_path(folder):
    runs = folder / "<i>long", folder / "short"
    egoaudio.report(*runs, folder / "ego.h5", output=folder / "page.html", device="cpu")
    return folder / "page.html"


@pytest.fixture(scope="module")
def judged(folder):
    """The scores of both runs on the test split, and their evaluations."""
    scored = [score_split(folder / name / "best.pt", folder / "ego.h5", "test", "cpu") for name in ("<i>long", "short")]
    return scored, [each.evaluate(num_resamples=50) for each in scored]


def test_scores_of_a_split_are_those_of_the_evaluation(folder, judged, tmp_path):
    found = egoaudio.evaluate(folder / "short" / "best.pt", folder / "ego.h5", output=tmp_path, num_resamples=50)
    assert str(found) == str(judged[1][1]) and found.about == judged[1][1].about


def test_a_section_holds_the_evaluations_numbers(folder, judged):
    scored, evaluation = judged[0][0], judged[1][0]
    section = run_section.describe(scored, evaluation, folder / "<i>long" / "best.pt", "run", "run-1", 2)
    assert dict(section.scores) == {TITLES[name]: score for name, score in evaluation.scores.items()}
    precisions = [row.average_precision for row in section.classes]
    assert precisions == sorted(precisions, reverse=True)
    rows = {row.title: row for row in section.classes}
    clips, probabilities = scored.truth.labelled, scored.rules.calibration.apply(scored.smoothed)
    for k, class_id in enumerate(evaluation.per_class["class_id"]):
        row = next(row for title, row in rows.items() if title.startswith(class_id))
        assert row.average_precision == evaluation.per_class["average_precision"][k]
        assert row.prior == pytest.approx(scored.truth.labels[clips][:, k].mean())
        assert row.is_audible == (evaluation.per_class["audible"][k] == 1)
        for clip in row.clips.best:
            place = int(np.flatnonzero(scored.truth.rows == clip.row)[0])
            assert clip.score == probabilities[place, k] and scored.truth.labels[place, k]
    errors = evaluation.calibration.before, evaluation.calibration.after
    for chart, error in zip(section.reliability, errors, strict=True):
        assert f"expected calibration error {100 * error:.2f} %" in chart.title
    with open(folder / "<i>long" / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [len(line.dots) for line in section.losses.lines] == [len(table)] * 2


def test_runs_side_by_side_differ_by_their_scores(judged):
    scored, evaluations = judged
    section = comparison_section.describe(["one", "two"], scored, evaluations, 50)
    for row in section.scores:
        if row.title != "mAP, audible classes":
            assert row.differences[0].value == pytest.approx(row.scores[1].value - row.scores[0].value)
    assert len(section.classes) == 5 and section.notes == ()


def test_a_run_on_other_clips_has_no_difference(folder, judged):
    other = score_split(folder / "short" / "best.pt", folder / "ego.h5", "validation", "cpu")
    section = comparison_section.describe(
        ["one", "two"], [judged[0][0], other], [judged[1][0], other.evaluate(num_resamples=50)], 50
    )
    assert section.notes == ("two was judged on other clips than one, so there is no difference between the two.",)
    assert all(row.differences == (None,) for row in section.scores)


def test_the_page_is_as_the_evaluation_in_a_browser(visit, page_path, judged):
    page = visit(page_path)
    assert page.locator("h2").all_inner_texts() == [
        "The file ego.h5",
        "The runs side by side",
        "The run <i>long",
        "The run short",
    ]
    evaluation = judged[1][0]
    cells = page.locator("section[aria-labelledby='run-1'] table").first.locator("tbody tr").all_inner_texts()
    assert cells[0].split("\t")[:2] == ["top-1 accuracy", f"{100 * evaluation.scores['top1'].value:.1f}"]
    table = page.locator("#run-1-table")
    table.get_by_role("button", name="AP").click()
    precisions = [float(text) for text in table.locator("tbody tr td:nth-child(3)").all_text_contents()]
    assert precisions == sorted(precisions)
    assert page.locator("main i").count() == 0


def test_clips_of_a_run_are_heard_and_names_stay_text(visit, page_path):
    page = visit(page_path, 400)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    card = page.locator("#run-2-list .clip[data-sound]").first
    card.locator(".play").click()
    wait_until(page, "document.getElementById('player').currentTime > 0")
    shown = page.locator("#run-2-list").inner_text()
    for name in HOSTILE[:4]:
        assert clean(name) in shown


def test_a_run_alone_takes_its_own_file(folder, tmp_path):
    made = egoaudio.report(folder / "short" / "best.pt", output=tmp_path / "page.html", device="cpu")
    text = (tmp_path / "page.html").read_text()
    assert (
        made.num_clips > 0
        and "The run <bdi>short</bdi>" in text
        and 'id="file"' not in text
        and 'id="comparison"' not in text
    )


def test_the_validation_split_is_judged_where_there_is_no_test_split(folder, tmp_path):
    path = make_file(tmp_path / "ego.h5", 12, 8, test_fraction=0)
    config = from_flat(TrainConfig, {"model": "cnn-small", "epochs": 1, "batch_size": 16})
    egoaudio.train(path, tmp_path / "run", config, device="cpu")
    egoaudio.report(tmp_path / "run", output=tmp_path / "page.html", device="cpu")
    assert "the validation split: " in (tmp_path / "page.html").read_text()


def test_runs_of_one_name_are_told_apart(folder, tmp_path):
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "best.pt").write_bytes(b"")
    assert find_sources([tmp_path / "a/run", tmp_path / "b/run"]).run_names == ("a/run", "b/run")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda run: (run / "config.json").unlink(),
            "does not say which file .* was trained on: give the egoaudio file too",
        ),
        (
            lambda run: (run / "config.json").write_text('{"file": "/nowhere/ego.h5"}'),
            "which .* was trained on, is not there",
        ),
        (lambda run: (run / "config.json").write_text('{"file": 3}'), "give the egoaudio file too"),
        (lambda run: (run / "best.pt").write_bytes(b"PK"), "best.pt: 2 bytes that do not end as a checkpoint"),
        (
            lambda run: (run / "metrics.csv").write_text("epoch,train_loss\n1,much\n"),
            "train_loss holds something that is no number",
        ),
    ],
)
def test_runs_that_cannot_be_shown_are_told_and_nothing_is_written(folder, tmp_path, change, words):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.pt", "config.json", "metrics.csv"):
        (run / name).write_bytes((folder / "short" / name).read_bytes())
    change(run)
    result = CliRunner().invoke(cli.report, [str(run), "--output", str(tmp_path / "page.html"), "--device", "cpu"])
    assert result.exit_code == 2 and re.search(words, result.output), result.output
    assert not (tmp_path / "page.html").exists()


def test_a_run_of_another_file_is_refused(folder, tmp_path):
    other = make_file(tmp_path / "other.h5", 6, 6, num_classes=4)
    result = CliRunner().invoke(
        cli.report, [str(other), str(folder / "short"), "--output", str(tmp_path / "page.html")]
    )
    assert result.exit_code == 2 and "the checkpoint does not fit" in result.output


def test_nothing_in_a_runs_folder_changes(folder, page_path):
    assert json.loads((folder / "short" / "config.json").read_text())["file"].endswith("ego.h5")
    assert not (folder / "short" / "evaluation.json").exists()
    with reader.open(folder / "ego.h5") as file:
        assert file.complete
