"""The library from Python: what ``egoaudio`` names, what it returns, and that a caller's process stays as it was."""

import importlib
import inspect
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pandas
import pytest
import synthetic
import torch
from small_runs import on_step

import egoaudio
from egoaudio.system import allocator
from egoaudio.training.step import Stepper

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

TRAINING = egoaudio.TrainConfig(
    model=egoaudio.ModelConfig(model="cnn", feature="spectrogram"),
    optimization=egoaudio.OptimizationConfig(epochs=2, batch_size=16),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of small clips, of which the last videos are a test split."""
    return synthetic.make_file(
        tmp_path_factory.mktemp("api") / "ego.h5", 12, 6, features={"spectrogram": (8, 16)}, num_classes=5
    )


def test_videos_become_an_evaluated_model(tmp_path):
    demo_data.make(tmp_path, 6, 1, 6.0, 7.0)
    inputs = egoaudio.Inputs(
        annotations=tmp_path / "train.csv",
        videos=tmp_path / "videos",
        test_annotations=[tmp_path / "test.csv"],
        classes=tmp_path / "classes.txt",
    )
    config = egoaudio.BuildConfig(features=egoaudio.FeatureConfig(features=("spectrogram",)))

    plan = egoaudio.preview(inputs, tmp_path / "ego.h5", config)
    assert (
        plan.num_videos == 6 and plan.num_clips > 0 and "would hold" in str(plan) and not (tmp_path / "ego.h5").exists()
    )

    report = egoaudio.build(inputs, tmp_path / "ego.h5", config, num_workers=2)
    assert (
        report.path == str(tmp_path / "ego.h5")
        and report.num_clips > 0
        and report.seconds > 0
        and not report.already_complete
    )
    assert [video_id for video_id, _ in report.failures] == [
        video_id for video_id, _ in plan.failures if video_id in dict(report.failures)
    ]
    assert egoaudio.build(inputs, tmp_path / "ego.h5", config).already_complete

    with egoaudio.open(report.path) as file:
        assert isinstance(file, egoaudio.EgoAudioFile) and file.num_clips == plan.num_clips

    run = egoaudio.train(report.path, tmp_path / "run", TRAINING, device="cpu")
    assert isinstance(run.history, pandas.DataFrame) and run.history["epoch"].tolist() == [1, 2]
    assert run.best.exists() and run.last.exists() and run.curves.exists() and run.best_epoch in (1, 2)
    assert egoaudio.train(report.path, tmp_path / "run", TRAINING, device="cpu").already_finished

    evaluation = egoaudio.evaluate(run.best, report.path, device="cpu", num_resamples=0)
    assert isinstance(evaluation, egoaudio.Evaluation) and "mAP" in str(evaluation)


def test_everything_public_is_there_and_explains_itself():
    for name in set(egoaudio.__all__) - {"__version__"}:
        assert getattr(egoaudio, name).__doc__, name
    assert set(egoaudio.__all__) <= set(dir(egoaudio))
    assert set(egoaudio._MODULES) | {"__version__"} == set(egoaudio.__all__)
    with pytest.raises(AttributeError, match="no attribute 'predictions'"):
        egoaudio.predictions  # noqa: B018


FUNCTIONS = [name for name in egoaudio.__all__ if inspect.isfunction(getattr(egoaudio, name))]
POSITIONAL = {"config", "media"}  # that may be left out, too
NO_PATHS = {"inputs", "media"}  # a value of paths; what is heard


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keywords_paths_may_be_objects_and_nothing_is_a_hook(name):
    for parameter in inspect.signature(getattr(egoaudio, name)).parameters.values():
        if parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY or parameter.name in POSITIONAL, parameter
            assert not callable(parameter.default) and "Callable" not in str(parameter.annotation), parameter
        elif parameter.name not in NO_PATHS:
            assert "PathLike" in str(parameter.annotation), parameter


def test_importing_loads_nothing():
    code = "import sys, egoaudio; print(sorted({'numpy', 'h5py', 'torch', 'pandas', 'av', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_call_leaves_the_callers_process_as_it_was(data, tmp_path, monkeypatch):
    def handler(number, frame):
        raise KeyboardInterrupt

    importlib.import_module("torch._dynamo")  # as PyTorch's optimisers do; SymPy's import adds a filter of warnings
    seen, changed = [], []
    monkeypatch.setattr(allocator, "keep_freed_memory", changed.append)
    monkeypatch.setattr(allocator, "return_freed_memory", lambda: changed.append("returned"))
    former = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        before = (
            torch.get_rng_state(),
            list(warnings.filters),
            warnings.showwarning,
            sys.unraisablehook,
            dict(os.environ),
            torch.get_num_threads(),
        )
        step = Stepper.launch
        monkeypatch.setattr(
            Stepper,
            "launch",
            lambda self, *batch: seen.append([signal.getsignal(number) for number in former]) or step(self, *batch),
        )
        run = egoaudio.train(data, tmp_path / "run", TRAINING, device="cpu")
        egoaudio.evaluate(run.best, data, device="cpu", num_resamples=0)
        after = (
            torch.get_rng_state(),
            list(warnings.filters),
            warnings.showwarning,
            sys.unraisablehook,
            dict(os.environ),
            torch.get_num_threads(),
        )
        assert seen and all(found == [handler, handler] for found in seen)
        assert [signal.getsignal(number) for number in former] == [handler, handler]
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:] and changed == []
    finally:
        torch.set_num_threads(threads)
        for number, handler in former.items():
            signal.signal(number, handler)


def test_ctrl_c_in_a_callers_program_is_heard_at_once_and_the_run_resumes(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        on_step(patch, {2: lambda: signal.raise_signal(signal.SIGINT)})
        egoaudio.train(data, tmp_path / "run", TRAINING, device="cpu")
    assert egoaudio.train(data, tmp_path / "run", TRAINING, device="cpu").epochs == 2


@pytest.mark.parametrize(
    "error, kind",
    [
        (egoaudio.ConfigurationError, ValueError),
        (egoaudio.AnnotationError, ValueError),
        (egoaudio.EvaluationError, ValueError),
        (egoaudio.MediaError, OSError),
        (egoaudio.StoreError, OSError),
        (egoaudio.CheckpointError, OSError),
        (egoaudio.BuildError, egoaudio.EgoAudioError),
        (egoaudio.TrainingError, egoaudio.EgoAudioError),
    ],
)
def test_errors_are_ours_and_pythons(error, kind):
    with pytest.raises(kind, match="^in words$"):
        raise error("in words")
    assert issubclass(error, egoaudio.EgoAudioError)


def test_a_file_that_is_not_there_is_an_oserror_and_a_bad_option_a_valueerror(tmp_path):
    with pytest.raises(OSError, match="nowhere.h5 cannot be opened"):
        egoaudio.open(tmp_path / "nowhere.h5")
    with pytest.raises(ValueError, match="expected at least 1"):
        egoaudio.OptimizationConfig(epochs=0)
