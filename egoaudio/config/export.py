"""What can be set when a model is exported."""

from dataclasses import dataclass

from egoaudio.config.options import Checked, option


@dataclass(frozen=True)
class ExportConfig(Checked):
    """How the graph is made, and what sound it will be given."""

    denoised_input: bool = option(
        False,
        "The sound will have been denoised as in training, which the graph does not do: needed for a model that was "
        "trained on denoised sound.",
    )
    opset: int = option(18, "Version of ONNX's operators.", minimum=18, most=25)
    transform: str = option(
        "fft",
        "How the graph computes spectra: by ONNX's DFT, or, for runtimes without that, by a product with a matrix, "
        "which is less exact where a clip has both loud and very faint bands.",
        choices=("fft", "matrix"),
    )
