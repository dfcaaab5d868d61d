"""Training on the shards of a build: the weights of a run on the one file, bit for bit."""

import pytest
import small_runs
import synthetic
from small_runs import assert_same_run

import egoaudio
from egoaudio.evaluation import evaluate
from egoaudio.training import run_folder, train


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


@pytest.mark.parametrize("changes", [{}, {"context_clips": 1, "shuffle": "block", "normalize": "dataset"}])
def test_weights_and_scores_are_those_of_the_one_file(tmp_path, changes):
    whole = small_runs.make_file(tmp_path / "ego.h5", failed=(3,))
    parts = synthetic.divide(whole, tmp_path, [0, 3, 4, 8, 10])
    config = small_runs.make_config(**{**small_runs.HARD, "epochs": 2, **changes})
    train.train(whole, tmp_path / "one", config)
    run = train.train(parts, tmp_path / "several", config)
    assert_same_run(tmp_path / "one", tmp_path / "several")
    assert all(path in run.next_command for path in parts)
    ours, theirs = (
        evaluate.evaluate(tmp_path / name / "best.pt", paths, num_resamples=0)
        for name, paths in (("several", parts), ("one", whole))
    )
    assert repr(ours.scores) == repr(theirs.scores)
    again = evaluate.evaluate(tmp_path / "several" / "best.pt", parts, split="validation", num_resamples=0)
    assert again.num_clips > 0


def test_a_run_goes_on_with_the_same_files_only(tmp_path):
    whole = small_runs.make_file(tmp_path / "ego.h5")
    parts = synthetic.divide(whole, tmp_path, [0, 5, 10])
    config = small_runs.make_config(epochs=1)
    train.train(parts, tmp_path / "run", config)
    assert train.train(parts, tmp_path / "run", config).already_finished
    with pytest.raises(egoaudio.CheckpointError, match="plan_sha256"):
        train.train(parts[::-1], tmp_path / "run", config)
    with pytest.raises(egoaudio.CheckpointError, match="plan_sha256"):
        train.train(whole, tmp_path / "run", config)


def test_a_run_never_replaces_one_of_its_files(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    whole = small_runs.make_file(tmp_path / "ego.h5")
    parts = synthetic.divide(whole, tmp_path, [0, 5, 10])
    (folder / "best.pt").hardlink_to(parts[1])
    with pytest.raises(egoaudio.TrainingError, match="is an input of this command"):
        run_folder.prepare(folder, parts, small_runs.make_config())
