"""What decides a trained model, besides the file: the rows, the network, the loop.

Units are in the names: ``_db``, ``_minutes``.
"""

from dataclasses import dataclass, field

from egoaudio.config.build import FEATURES
from egoaudio.config.options import Checked, option
from egoaudio.errors import ConfigurationError


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which rows are trained on, in what order, and what is done to them."""

    validation_fraction: float = option(0.2, "Share of the file's train split that is held out for validation.", minimum=0)
    split_unit: str = option(
        "video", "What is held out whole. 'clip' is the paper's: neighbouring clips of a video fall on both sides, so its scores leak.",
        choices=("video", "subject", "clip"),
    )
    normalize: str = option("dataset", "By the training videos' mean and deviation, the paper's numbers, or not.", choices=("dataset", "paper", "none"))
    label_mode: str = option("multi", "All active classes of a clip (sigmoids), or one row per clip and active class (softmax).", choices=("multi", "single"))
    class_weights: bool = option(False, "Weight the loss by total / (num_classes * count).")
    balanced_sampling: bool = option(False, "Draw clips so that rare classes come as often as common ones.")
    shuffle: str = option("full", "A full permutation, or one of blocks of rows (spinning disks, network file systems).", choices=("full", "block"))
    loader_workers: int = option(0, "Processes that read; 0 reads in a thread of this one, which is fastest.", minimum=0)
    spec_augment: bool = option(False, "Mask bands of frequency and spans of time while training.")
    mixup: float = option(0.0, "Mix pairs of clips, with this Beta parameter; 0 is off.", minimum=0)
    gain_db: float = option(0.0, "Change the level of a clip at random by up to this many dB; 0 is off.", minimum=0)

    def __post_init__(self):
        """Check that something is left to train on."""
        super().__post_init__()
        if self.validation_fraction >= 1:
            raise ConfigurationError(f"--validation-fraction {self.validation_fraction:g}: expected less than 1, or nothing is left to train on")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network; sizes apply to ``ast`` only, the others are what their papers say."""

    model: str = option("cnn", "cnn and ast-paper are the paper's; cnn-small and ast do better.", choices=("cnn", "cnn-small", "ast", "ast-paper"))
    feature: str | None = option(None, "The array to train on: logmel for ast, spectrogram for the others if not given.", choices=FEATURES[:3])
    pretrained: str | None = option(None, "Weights of a published AST to start from: a folder or a hub id. Its sizes replace those below.")
    hidden_size: int = option(384, "Width of ast.", minimum=1)
    num_layers: int = option(6, "Layers of ast.", minimum=1)
    num_heads: int = option(6, "Attention heads of ast.", minimum=1)
    patch_size: int = option(16, "Side of a patch of ast, in frames and bins.", minimum=1)
    stride: int = option(10, "Step between the patches of ast, in frames and bins.", minimum=1)
    dropout: float = option(0.0, "Dropout of ast and cnn-small.", minimum=0)


@dataclass(frozen=True)
class OptimizationConfig(Checked):
    """The loop: optimiser, schedule, memory, precision."""

    epochs: int = option(30, "Passes over the training clips.", minimum=1)
    batch_size: int = option(64, "Clips in a step of the optimiser; never changed by the search for memory.", minimum=1)
    micro_batch_size: int | None = option(None, "Clips on the device at once; found out if not given.", minimum=1)
    optimizer: str = option("adam", "adam (the paper's) or adamw.", choices=("adam", "adamw"))
    learning_rate: float = option(1e-3, "Peak learning rate.", above=0)
    weight_decay: float = option(0.0, "Weight decay.", minimum=0)
    schedule: str = option("cosine", "After the warm-up: down to zero along a cosine, or constant.", choices=("cosine", "constant"))
    warmup_fraction: float = option(0.05, "Share of all steps over which the learning rate rises.", minimum=0)
    patience: int = option(0, "Stop after this many epochs without a better validation mAP; 0 never stops early.", minimum=0)
    clip_gradient: float = option(0.0, "Largest norm of the gradient; 0 does not clip.", minimum=0)
    amp: bool = option(False, "Mixed precision: bfloat16 where the device has it, else float16 with a gradient scaler.")
    amp_dtype: str | None = option(None, "The type for --amp, if the choice is to be yours.", choices=("bfloat16", "float16"))
    activation_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, about a third more time.")
    compile: bool = option(False, "Compile the model first (torch.compile).")
    checkpoint_minutes: float = option(10.0, "Write last.pt this often within an epoch too.", above=0)
    seed: int = option(0, "All randomness follows from it.", minimum=0)

    def __post_init__(self):
        """Check that no option would be without effect."""
        super().__post_init__()
        if self.amp_dtype is not None and not self.amp:
            raise ConfigurationError(f"--amp-dtype {self.amp_dtype} has no effect without --amp: give both, or neither")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Everything that decides a trained model, besides the file."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)


TRAIN_PRESETS = {
    # The student paper's protocol, for either of its models; its clip split leaks neighbouring clips into validation.
    "paper": {
        "normalize": "paper", "split_unit": "clip", "validation_fraction": 0.2, "class_weights": True, "label_mode": "multi",
        "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "warmup_fraction": 0.0,
    },
}
