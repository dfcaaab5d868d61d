"""What decides the bytes of an egoaudio file, besides its inputs: one small dataclass for each stage of a build.

Units are in the names: ``_seconds``, ``_hz``, ``_db``.
"""

from dataclasses import dataclass, field

from egoaudio.config.options import Checked, option
from egoaudio.errors import ConfigurationError

FEATURES = ("spectrogram", "mfcc", "logmel", "yamnet", "waveform")
YAMNET_SAMPLE_RATE = 16000  # Hz; the network takes no other


def check_yamnet_rate(sample_rate: int) -> None:
    """Raise ConfigurationError unless ``sample_rate`` (Hz) is the one that YAMNet takes."""
    if sample_rate != YAMNET_SAMPLE_RATE:
        raise ConfigurationError(
            f"`features=('yamnet',)` at `sample_rate={sample_rate}`: YAMNet takes {YAMNET_SAMPLE_RATE} Hz and no other "
            f"rate; build with `sample_rate={YAMNET_SAMPLE_RATE}`, or leave yamnet out"
        )


@dataclass(frozen=True)
class ClipConfig(Checked):
    """Which clips a recording yields, and when a class is active in one."""

    clip_seconds: float = option(1.0, "Length of a clip.", above=0)
    hop_seconds: float | None = option(
        None, "From one clip's start to the next one's; the clip's length if not given.", above=0
    )
    context_seconds: float | None = option(
        None,
        "Take features from this much sound around the clip's centre (silence beyond the recording's ends); labels are "
        "the clip's alone. The clip's length if not given.",
        above=0,
    )
    min_overlap_seconds: float = option(
        0.0,
        "A class is active when it overlaps the clip by more than this many seconds.",
        flag="--min-overlap",
        minimum=0,
    )
    no_action: str = option(
        "all",
        "The class that is active where no other is: everywhere (all), only before the last annotated end, with later "
        "clips unlabelled (interior), or no such class (none).",
        choices=("all", "interior", "none"),
    )

    def __post_init__(self) -> None:
        """Check that the features cover at least the clip itself."""
        super().__post_init__()
        if self.context_seconds is not None and self.context_seconds < self.clip_seconds:
            raise ConfigurationError(
                f"`context_seconds={self.context_seconds:g}` is less than `clip_seconds={self.clip_seconds:g}`: "
                "give at least the clip's length, or leave it out"
            )

    @property
    def step_seconds(self) -> float:
        """From one clip's start to the next one's: ``hop_seconds``, or the clip's length where it is not given."""
        return self.clip_seconds if self.hop_seconds is None else self.hop_seconds


@dataclass(frozen=True)
class DenoiseConfig(Checked):
    """How the sound is denoised before features are taken."""

    mode: str = option(
        "nonstationary",
        "Spectral gating: the noise floor follows the sound (nonstationary), or is fixed (stationary).",
        choices=("nonstationary", "stationary", "none"),
        flag="--denoise",
    )
    scope: str = option(
        "clip",
        "Estimate the noise floor from each clip alone (as in the paper; best mAP), or from the whole recording.",
        choices=("recording", "clip"),
        flag="--denoise-scope",
    )
    engine: str = option(
        "egoaudio",
        "The package's own, or the noisereduce library: the same result, slower, with the whole recording in memory.",
        choices=("egoaudio", "noisereduce"),
        flag="--denoise-engine",
    )


@dataclass(frozen=True)
class FeatureConfig(Checked):
    """Which feature arrays the file holds and the parameters that make them."""

    features: tuple[str, ...] = option(
        ("spectrogram", "mfcc", "logmel"),
        f"Comma-separated, any of: {', '.join(FEATURES)}. The default is what the models trained from scratch take; "
        "yamnet is the log-mel of the model yamnet.",
        choices=FEATURES,
    )
    n_fft: int = option(2048, "Samples in a frame of spectrogram and mfcc.", minimum=2, most=1 << 18)
    hop_length: int = option(512, "Samples from one frame to the next.", minimum=1)
    window: str = option("hann", "Window of a frame.", choices=("hann", "hamming", "blackman", "boxcar"))
    n_mels: int = option(128, "Mel bands behind the mfcc.", minimum=1, most=4096)
    n_mfcc: int = option(20, "Coefficients of the mfcc.", minimum=1)
    f_min_hz: float = option(0.0, "Lowest frequency of the mel bands behind the mfcc.", flag="--f-min", minimum=0)
    f_max_hz: float | None = option(
        None, "Highest frequency of those bands; half the sample rate if not given.", flag="--f-max", above=0
    )
    dtype: str = option(
        "float32",
        "Type of the feature arrays; float16 halves the file, but viewers cannot show it.",
        choices=("float32", "float16"),
    )
    waveform_dtype: str | None = option(
        None,
        "Type of the waveforms; that of the other arrays if not given. int16 takes half of float32, and its attribute "
        "scale makes sound of it.",
        choices=("float32", "float16", "int16"),
    )

    def dtype_of(self, feature: str) -> str:
        """Return the type in which an array is stored."""
        return self.dtype if feature != "waveform" or self.waveform_dtype is None else self.waveform_dtype

    def __post_init__(self) -> None:
        """Check the combination and put the features in the file's order."""
        super().__post_init__()
        if not self.features:
            raise ConfigurationError(f"`features` is empty: expected any of {', '.join(FEATURES)}")
        object.__setattr__(self, "features", tuple(name for name in FEATURES if name in self.features))
        if self.n_mfcc > self.n_mels:
            raise ConfigurationError(
                f"`n_mfcc={self.n_mfcc}` is more than `n_mels={self.n_mels}`: an mfcc has at most as many coefficients "
                "as bands"
            )


@dataclass(frozen=True)
class SoundConfig(Checked):
    """Which sound of a media file is taken, and where it is placed in time."""

    audio_track: int | None = option(
        None,
        "Audio track to take, counted from 0; if not given, of those that decode the one marked as the default, else "
        "the first.",
        minimum=0,
    )
    compensate_delay: bool = option(
        False,
        "Move sound earlier by its codec's delay (5 to 46 ms) where the container does not state it. Players do not, "
        "so annotations made with a player include the delay.",
    )
    skip_silent: bool = option(
        False,
        "Leave out silent recordings: muted, digital silence, or channels that cancel out.",
    )


@dataclass(frozen=True)
class BuildConfig(Checked):
    """Everything that decides the bytes of an egoaudio file, besides its inputs."""

    sample_rate: int = option(16000, "Samples a second after resampling.", minimum=1000, most=1_000_000)
    sound: SoundConfig = field(default_factory=SoundConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        """Check what concerns more than one stage."""
        super().__post_init__()
        if self.clips.clip_seconds * self.sample_rate < 1:
            raise ConfigurationError(
                f"`clip_seconds={self.clips.clip_seconds:g}` is less than one sample at {self.sample_rate} Hz"
            )
        if (
            self.features.f_max_hz is not None
            and not self.features.f_min_hz < self.features.f_max_hz <= self.sample_rate / 2
        ):
            raise ConfigurationError(
                f"`f_max_hz={self.features.f_max_hz:g}`: expected more than `f_min_hz={self.features.f_min_hz:g}` and "
                f"at most {self.sample_rate / 2:g}, half the sample rate"
            )
        if "yamnet" in self.features.features:
            check_yamnet_rate(self.sample_rate)


BUILD_PRESETS = {
    # The student paper: each 1 s clip denoised by itself, spectrogram and MFCC, no_action where no class is active.
    "paper": {
        "sample_rate": 16000,
        "clip_seconds": 1.0,
        "hop_seconds": None,
        "context_seconds": None,
        "min_overlap_seconds": 0.0,
        "no_action": "all",
        "mode": "nonstationary",
        "scope": "clip",
        "features": ("spectrogram", "mfcc"),
        "n_fft": 2048,
        "hop_length": 512,
        "window": "hann",
        "n_mels": 128,
        "n_mfcc": 20,
        "f_min_hz": 0.0,
        "f_max_hz": None,
    },
}
