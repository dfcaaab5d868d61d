"""egoaudio: from egocentric videos with action annotations to trained audio classifiers.

``build`` makes one HDF5 file of clips, features and labels from videos and their CSVs (``preview`` only plans it,
``merge`` joins several), ``open`` reads it, ``train`` makes a model from it, ``evaluate`` scores the model, ``predict``
applies it to new recordings (``predict_to_folder`` also writes the results), ``report`` makes an HTML page, ``export``
an ONNX graph. Each does what the command of its name does; printing what it returns gives the command's text.
``load_model`` gives a trained model as a ``torch.nn.Module``.

Importing the package loads nothing else: each name is loaded when it is first used (PEP 562), so that a command's
``--help`` and a build worker load only what they need.
"""

import importlib
from typing import TYPE_CHECKING, Any

from egoaudio._version import __version__

if TYPE_CHECKING:
    from egoaudio.builder.build import build, preview
    from egoaudio.builder.merging import merge
    from egoaudio.builder.plan import Inputs
    from egoaudio.builder.summary import BuildPlan, BuildReport
    from egoaudio.config.build import BuildConfig, ClipConfig, DenoiseConfig, FeatureConfig
    from egoaudio.config.export import ExportConfig
    from egoaudio.config.predict import OutputConfig, PredictConfig, ScoringConfig, SegmentConfig
    from egoaudio.config.report import ReportConfig
    from egoaudio.config.train import DataConfig, DistillationConfig, ModelConfig, OptimizationConfig, TrainConfig
    from egoaudio.errors import (
        AnnotationError,
        BuildError,
        CheckpointError,
        ConfigurationError,
        EgoAudioError,
        EvaluationError,
        ExportError,
        MediaError,
        PredictionError,
        ReportError,
        ResourceError,
        Status,
        StoreError,
        TrainingError,
    )
    from egoaudio.evaluation.evaluate import evaluate
    from egoaudio.evaluation.results import Evaluation, Score
    from egoaudio.exporting.export import ExportReport, export
    from egoaudio.hdf5.reader import EgoAudioFile, open
    from egoaudio.models.classifier import Classifier, load_model
    from egoaudio.prediction.predict import predict, predict_to_folder
    from egoaudio.prediction.report import PredictionReport
    from egoaudio.prediction.result import Prediction
    from egoaudio.reporting.report import Report, report
    from egoaudio.training.run_folder import TrainingRun
    from egoaudio.training.train import train

_HOMES = {
    "builder.build": ("build", "preview"),
    "builder.merging": ("merge",),
    "builder.plan": ("Inputs",),
    "builder.summary": ("BuildPlan", "BuildReport"),
    "config.build": ("BuildConfig", "ClipConfig", "DenoiseConfig", "FeatureConfig"),
    "config.export": ("ExportConfig",),
    "config.predict": ("OutputConfig", "PredictConfig", "ScoringConfig", "SegmentConfig"),
    "config.report": ("ReportConfig",),
    "config.train": ("DataConfig", "DistillationConfig", "ModelConfig", "OptimizationConfig", "TrainConfig"),
    "errors": (
        "AnnotationError",
        "BuildError",
        "CheckpointError",
        "ConfigurationError",
        "EgoAudioError",
        "EvaluationError",
        "ExportError",
        "MediaError",
        "PredictionError",
        "ReportError",
        "ResourceError",
        "Status",
        "StoreError",
        "TrainingError",
    ),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.results": ("Evaluation", "Score"),
    "exporting.export": ("ExportReport", "export"),
    "hdf5.reader": ("EgoAudioFile", "open"),
    "models.classifier": ("Classifier", "load_model"),
    "prediction.predict": ("predict", "predict_to_folder"),
    "prediction.report": ("PredictionReport",),
    "prediction.result": ("Prediction",),
    "reporting.report": ("Report", "report"),
    "training.run_folder": ("TrainingRun",),
    "training.train": ("train",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AnnotationError",
    "BuildConfig",
    "BuildError",
    "BuildPlan",
    "BuildReport",
    "CheckpointError",
    "Classifier",
    "ClipConfig",
    "ConfigurationError",
    "DataConfig",
    "DenoiseConfig",
    "DistillationConfig",
    "EgoAudioError",
    "EgoAudioFile",
    "Evaluation",
    "EvaluationError",
    "ExportConfig",
    "ExportError",
    "ExportReport",
    "FeatureConfig",
    "Inputs",
    "MediaError",
    "ModelConfig",
    "OptimizationConfig",
    "OutputConfig",
    "PredictConfig",
    "Prediction",
    "PredictionError",
    "PredictionReport",
    "Report",
    "ReportConfig",
    "ReportError",
    "ResourceError",
    "Score",
    "ScoringConfig",
    "SegmentConfig",
    "Status",
    "StoreError",
    "TrainConfig",
    "TrainingError",
    "TrainingRun",
    "__version__",
    "build",
    "evaluate",
    "export",
    "load_model",
    "merge",
    "open",
    "predict",
    "predict_to_folder",
    "preview",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'egoaudio' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"egoaudio.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, loaded or not."""
    return sorted({*globals(), *__all__})
