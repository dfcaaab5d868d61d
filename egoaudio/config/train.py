"""What decides a trained model, besides the file: the rows, the network, the optimisation, a teacher.

Units are in the names: ``_db``, ``_minutes``.
"""

from dataclasses import dataclass, field, fields

from egoaudio.config.build import FEATURES
from egoaudio.config.options import Checked, from_flat, option, to_flat
from egoaudio.config.train_defaults import MODEL_DEFAULTS, PRETRAINED_DEFAULTS, RAW_MODELS
from egoaudio.errors import ConfigurationError

# Whose clips are evaluated: the file's test videos, or a part of its train videos as the run divided them.
SPLITS = ("test", "validation", "train")
# How a video's scores follow from those of its clips.
POOLS = ("max", "mean")


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which rows are trained on, in what order, and what is done to them."""

    validation_fraction: float = option(
        0.2,
        "Share of the file's train split that is held out for validation. The best epoch is chosen by the mAP of the "
        "classes with enough clips there (at least half of them, or ten), the mean over two epochs.",
        minimum=0,
    )
    split_unit: str = option(
        "video",
        "What is held out as a whole. 'clip' is the paper's: neighbouring clips of a video fall on both sides, so "
        "validation scores are too high.",
        choices=("video", "subject", "clip"),
    )
    normalize: str = option(
        "dataset",
        "By mean and standard deviation of the training videos, by the paper's numbers, or not at all; never for "
        "yamnet, which takes its own log-mel as it is.",
        choices=("dataset", "paper", "none"),
    )
    on_the_fly: bool = option(
        False,
        "Compute the features from the file's waveforms, on the device of the model, instead of reading them.",
        before=False,
    )
    label_mode: str = option(
        "multi",
        "All active classes of a clip (sigmoids), or one row per clip and active class (softmax).",
        choices=("multi", "single"),
    )
    class_weights: bool = option(False, "Weight the loss by total / (num_classes * count).")
    balanced_sampling: bool = option(
        False,
        "Draw clips so that rare classes come as often as common ones. It did not raise mAP on the development set.",
    )
    shuffle: str = option(
        "full",
        "A full permutation, or one of blocks of rows (spinning disks, network file systems).",
        choices=("full", "block"),
    )
    loader_workers: int = option(
        0, "Processes that read; 0 reads in a thread of the main process, which is fastest.", minimum=0, most=512
    )
    spec_augment: bool = option(
        False, "Mask bands of frequency and spans of time while training. It did not raise mAP on the development set."
    )
    context_clips: int | None = option(
        None,
        "The model also takes this many neighbouring clips on each side; labels are those of the clip.",
        minimum=0,
        most=1000,
        before=0,
    )
    mixup: float | None = option(
        None,
        "Mix pairs of clips, with this Beta parameter; 0 is off. It did not raise mAP on the development set.",
        minimum=0,
    )
    gain_db: float | None = option(
        None,
        "Change the level of a clip at random by up to this many dB; 0 is off. With `on_the_fly` the sound's, before "
        "the floor of the feature, not after it.",
        minimum=0,
        most=100,
    )
    time_shift_seconds: float | None = option(
        None,
        "Shift a clip in time at random by up to this many seconds; 0 is off.",
        flag="--time-shift",
        minimum=0,
        before=0.0,
    )
    mix_snr_db: tuple[float, ...] = option(
        (),
        "Add the sound of a random other clip, so many dB below a clip's own, or between two numbers: 5,25. The labels "
        "stay the clip's. Needs `on_the_fly`.",
        minimum=-100,
        most=100,
        before=(),
    )
    filter_db: float = option(
        0.0,
        "Change the level of bands of frequency at random by up to this many dB, smoothly; 0 is off. Needs "
        "`on_the_fly`.",
        minimum=0,
        most=100,
        before=0.0,
    )

    def __post_init__(self) -> None:
        """Check that something is left to train on."""
        super().__post_init__()
        if self.validation_fraction >= 1:
            raise ConfigurationError(
                f"`validation_fraction={self.validation_fraction:g}`: expected less than 1, "
                "or nothing is left to train on"
            )
        if len(self.mix_snr_db) > 2 or tuple(sorted(self.mix_snr_db)) != self.mix_snr_db:
            raise ConfigurationError(
                f"`mix_snr_db={self.mix_snr_db!r}`: expected one number of dB, or the least and the largest"
            )
        if self.context_clips and self.split_unit == "clip":
            raise ConfigurationError(
                f"`context_clips={self.context_clips}` (the default of some models) with `split_unit='clip'`: training "
                "clips would include neighbours that are held out: give `context_clips=0`, or `split_unit='video'`"
            )


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network; sizes apply to ``ast`` only, the others are what their papers say."""

    model: str = option(
        "cnn-small",
        "cnn-small is the best for its size; yamnet and ast start from published weights (`pretrained`); "
        "cnn and ast-paper are the paper's.",
        choices=tuple(MODEL_DEFAULTS),
    )
    feature: str | None = option(
        None,
        "The array to train on: spectrogram for cnn and ast-paper, yamnet for yamnet, else logmel, if not given.",
        choices=FEATURES,
    )
    pretrained: str | None = option(
        None,
        "Published weights to start from: for ast a folder or a hub id, with sizes of their own, so that those below "
        "are refused (and `learning_rate` is 5e-5 if not given); for yamnet a file of YAMNet's weights.",
    )
    freeze: bool = option(
        False, "Keep the published weights of yamnet as they are and train its last layer only.", before=False
    )
    hidden_size: int = option(192, "Width of ast.", minimum=1, most=1 << 16)
    num_layers: int = option(4, "Layers of ast.", minimum=1, most=1 << 10)
    num_heads: int = option(3, "Attention heads of ast.", minimum=1)
    patch_size: int = option(16, "Side of a patch of ast, in frames and bins.", minimum=1)
    stride: int = option(10, "Step between the patches of ast, in frames and bins.", minimum=1)
    dropout: float | None = option(
        None,
        "Dropout of ast, cnn-small and yamnet; 0 is off. Compared once, for an earlier cnn-small with one seed: mAP "
        "without 28.6 per cent on validation and 43.8 on test, by default 31.1 and 42.1, with 0.5 28.7 and 42.3.",
        minimum=0,
    )
    patchout: float | None = option(
        None,
        "Share of the rows and columns of patches that ast leaves out in training (PaSST's structured patchout).",
        minimum=0,
        before=0.0,
    )


@dataclass(frozen=True)
class OptimizationConfig(Checked):
    """The optimisation: optimiser, schedule, memory, precision."""

    epochs: int | None = option(None, "Passes over the training clips.", minimum=1)
    batch_size: int = option(64, "Clips in a step of the optimiser; never changed by the search for memory.", minimum=1)
    micro_batch_size: int | None = option(None, "Clips on the device at once; found out if not given.", minimum=1)
    optimizer: str | None = option(None, "adam (the paper's) or adamw.", choices=("adam", "adamw"))
    learning_rate: float | None = option(None, "Peak learning rate.", above=0)
    weight_decay: float | None = option(None, "Weight decay; a usual value, not compared with others.", minimum=0)
    schedule: str = option(
        "cosine", "After the warm-up: down to zero along a cosine, or constant.", choices=("cosine", "constant")
    )
    warmup_fraction: float | None = option(
        None, "Share of all steps over which the learning rate rises; not compared with others.", minimum=0
    )
    ema: float | None = option(
        None,
        "Evaluate a moving average of the weights, of which each step keeps this share; 0 is off.",
        minimum=0,
        before=0.0,
    )
    loss: str = option(
        "bce",
        "bce, or asymmetric: negatives that the model is sure of count less, for incomplete annotations.",
        choices=("bce", "asymmetric"),
        before="bce",
    )
    label_smoothing: float = option(0.0, "Train towards 1 less this much, and 0 plus this much.", minimum=0, before=0.0)
    smooth_clips: int | None = option(
        None,
        "Average a clip's scores with those of this many neighbours on each side; chosen on the validation split if "
        "not given.",
        minimum=0,
        most=1000,
        before=0,
    )
    patience: int = option(
        0, "Stop after this many epochs without a better validation score; 0 never stops early.", minimum=0
    )
    clip_gradient: float = option(0.0, "Largest norm of the gradient; 0 does not clip.", minimum=0)
    amp: bool = option(
        False,
        "Mixed precision where it is faster: bfloat16 if the device computes it natively, else float16 on a GPU and "
        "float32 on a CPU.",
    )
    amp_dtype: str | None = option(
        None, "The type for `amp`; chosen by the device if not given.", choices=("bfloat16", "float16")
    )
    activation_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = option(False, "Compile the model first (torch.compile).")
    checkpoint_minutes: float = option(10.0, "Write last.pt this often within an epoch, too.", above=0)
    seed: int = option(0, "Seed of all randomness.", minimum=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        """Check that no option would be without effect."""
        super().__post_init__()
        if self.amp_dtype is not None and not self.amp:
            raise ConfigurationError(
                f"`amp_dtype={self.amp_dtype!r}` has no effect without `amp=True`: give both, or neither"
            )
        if self.ema is not None and self.ema >= 1:
            raise ConfigurationError(
                f"`ema={self.ema:g}`: expected less than 1, or the average never changes; 0.999 is usual"
            )
        if self.label_smoothing >= 0.5:
            raise ConfigurationError(
                f"`label_smoothing={self.label_smoothing:g}`: expected less than 0.5, where a label says nothing"
            )


@dataclass(frozen=True)
class DistillationConfig(Checked):
    """Learning a teacher's scores beside the labels."""

    teacher: tuple[str, ...] = option(
        (), "Comma-separated checkpoints whose mean scores the model learns beside the labels.", before=()
    )
    teacher_weight: float = option(
        0.5, "Share of the loss that comes from the teacher, more than 0.", minimum=0, before=0.5
    )
    teacher_temperature: float = option(
        1.0, "Divide the logits of teacher and student by this before they are compared.", above=0, before=1.0
    )

    def __post_init__(self) -> None:
        """Check the share of the teacher, and that no option would be without effect."""
        super().__post_init__()
        for setting in fields(self)[1:]:
            value = getattr(self, setting.name)
            if not self.teacher and value != setting.default:
                raise ConfigurationError(
                    f"`{setting.name}={value:g}` has no effect without `teacher`: give both, or neither"
                )
        if not all(isinstance(path, str) for path in self.teacher):
            raise ConfigurationError(f"`teacher={self.teacher!r}`: expected paths of checkpoints as text")
        if self.teacher_weight > 1:
            raise ConfigurationError(
                f"`teacher_weight={self.teacher_weight:g}`: expected 0 to 1, as the labels get the rest of the loss"
            )


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Everything that decides a trained model, besides the file."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        """Check what concerns more than one part."""
        super().__post_init__()
        if self.data.normalize == "paper" and self.model.model in RAW_MODELS:
            raise ConfigurationError(
                f"`normalize='paper'`: {self.model.model} takes its features as they are: leave `normalize` out"
            )
        if self.data.on_the_fly and self.model.feature == "waveform":
            raise ConfigurationError(
                "`on_the_fly=True` has no effect with `feature='waveform'`, which nothing is computed from: leave one "
                "of them out"
            )
        for name in ("mix_snr_db", "filter_db"):
            value = getattr(self.data, name)
            if value and not self.data.on_the_fly and self.model.feature != "waveform":
                raise ConfigurationError(
                    f"`{name}={value!r}` changes sound, and the features are read from the file: give "
                    f"`on_the_fly=True`, which computes them from its waveforms, or leave `{name}` out"
                )
        if self.optimization.loss == "asymmetric" and self.data.label_mode == "single":
            raise ConfigurationError(
                "`loss='asymmetric'` weighs the classes of a clip one by one: "
                "give `label_mode='multi'`, or `loss='bce'`"
            )

    def check_new(self) -> None:
        """Refuse, of a run that begins, what earlier versions took: stored configurations may hold it.

        Raises
        ------
        ConfigurationError
            When an option is without effect, or an empty text.
        """
        warmup, weight = self.optimization.warmup_fraction, self.distillation.teacher_weight
        if warmup is not None and warmup > 1:
            raise ConfigurationError(f"`warmup_fraction={warmup:g}`: expected at most 1")
        if self.distillation.teacher and weight == 0:
            raise ConfigurationError(
                "`teacher_weight=0`: nothing would be learnt from `teacher`: give more than 0, or leave `teacher` out"
            )
        if self.model.pretrained == "":
            raise ConfigurationError(
                "`pretrained` is empty, as a variable of the shell is that was not set: give the published weights, or "
                "leave it out"
            )

    def resolved(self) -> "TrainConfig":
        """Return the configuration with every option that was not given as its model's default."""
        values, defaults = to_flat(self), MODEL_DEFAULTS[self.model.model]
        if self.model.model in RAW_MODELS:
            values["normalize"] = "none"
        if self.model.pretrained is not None:
            defaults = defaults | PRETRAINED_DEFAULTS.get(self.model.model, {})
        return from_flat(
            TrainConfig, {name: defaults.get(name) if value is None else value for name, value in values.items()}
        )


TRAIN_PRESETS = {
    # The student paper's protocol, for either of its models; its split by clips leaks neighbours into validation.
    "paper": {
        "model": "cnn",
        "normalize": "paper",
        "split_unit": "clip",
        "validation_fraction": 0.2,
        "class_weights": True,
        "label_mode": "multi",
        "optimizer": "adam",
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "smooth_clips": 0,
    },
}
