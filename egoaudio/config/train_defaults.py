"""What an option of training that is not given means, model by model.

``cnn`` and ``ast-paper`` have the paper's values. Of the others:

- compared with other values by benchmarks/hearing.py (benchmarks/README.md, Hearing): of cnn-small the context, the
  change of level, mixup, time shift, EMA and 10 epochs; 30 epochs and dropout for an earlier cnn-small, with one seed;
- compared in development only: the learning rate and the epochs of yamnet (models/yamnet.py has figures of the rate),
  the epochs and the patchout of ast (no figures were kept), and AdamW at 2e-3 in one cycle instead of Adam at 1e-3,
  which gave 3.3 points of mAP to another CNN on another set;
- usual values, of which no comparison is recorded: every weight decay, the shares of warm-up by themselves, ast's
  learning rates, dropout and change of level, and yamnet's change of level.
"""

from typing import Any

_PAPER: dict[str, Any] = {
    "epochs": 30,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_fraction": 0.05,
    "ema": 0.0,
    "context_clips": 0,
    "gain_db": 0.0,
    "time_shift_seconds": 0.0,
    "mixup": 0.0,
    "dropout": 0.0,
    "patchout": 0.0,
}
MODEL_DEFAULTS = {
    "cnn-small": _PAPER
    | {
        "epochs": 20,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "warmup_fraction": 0.3,
        "context_clips": 1,
        "gain_db": 10.0,
        "dropout": 0.2,
    },
    "cnn": _PAPER,
    "ast": _PAPER
    | {
        "epochs": 30,
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "weight_decay": 0.05,
        "warmup_fraction": 0.1,
        "gain_db": 10.0,
        "dropout": 0.1,
        "patchout": 0.5,
    },
    "ast-paper": _PAPER,
    "yamnet": _PAPER
    | {
        "epochs": 5,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "warmup_fraction": 0.1,
        "gain_db": 10.0,
    },
}

RAW_MODELS = ("yamnet",)  # take their features as they are, not normalised
# Where a model starts from published weights: a tenth of the learning rate, lest they are overwritten; not measured.
PRETRAINED_DEFAULTS = {"ast": {"learning_rate": 5e-5}}


def describe_defaults(name: str) -> str:
    """Return what an option that is not given means, model by model: ``cnn-small 20; cnn, ast-paper 30``."""
    models: dict[str, list[str]] = {}
    for model, defaults in MODEL_DEFAULTS.items():
        value = defaults[name]
        models.setdefault(f"{value:g}" if isinstance(value, (int, float)) else str(value), []).append(model)
    return (
        next(iter(models))
        if len(models) == 1
        else "; ".join(f"{', '.join(users)} {value}" for value, users in models.items())
    )
