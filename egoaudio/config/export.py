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
    transform: str | None = option(
        None,
        "How the graph computes spectra: by ONNX's DFT (fft), which few runtimes have, or by a product with a matrix; "
        "if not given, by a matrix of at most 32 MB, else by DFT.",
        choices=("fft", "matrix"),
    )
