"""Steps of the Audio Spectrogram Transformer: transformers' with eager attention, ours, and one of ``ast-paper``.

Random clips in memory, Adam, binary cross-entropy. What is measured of memory must be measured in a fresh process.
"""

import measuring
import torch
from torch import nn

from egoaudio.config.train import OptimizationConfig
from egoaudio.models import create_model
from egoaudio.system import allocator
from egoaudio.system.memory import peak_memory_mb, reset_peak_memory
from egoaudio.training.losses import Loss
from egoaudio.training.optimizer import make_optimizer
from egoaudio.training.step import Stepper

CPU = torch.device("cpu")


def make_batch(num_clips, feature_shape, num_classes):
    """Return random features and labels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_clips, *feature_shape, generator=generator)
    return features, (torch.rand(num_clips, num_classes, generator=generator) < 0.03).float()


def num_tokens(feature_shape, config):
    """Return the tokens of a clip, the two special ones included."""
    along = [(length - config.patch_size) // config.stride + 1 for length in feature_shape]
    return 2 + along[0] * along[1]


def eager(feature_shape, num_clips, num_classes, config, amp=False):
    """Return a step of transformers' model in the sizes of ``config`` with eager attention, as people write it."""
    from transformers import ASTConfig, ASTForAudioClassification

    features, labels = make_batch(num_clips, feature_shape, num_classes)
    num_frames, num_bins = feature_shape
    model = ASTForAudioClassification(
        ASTConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=0.0,
            patch_size=config.patch_size,
            frequency_stride=config.stride,
            time_stride=config.stride,
            max_length=num_frames,
            num_mel_bins=num_bins,
            num_labels=num_classes,
            attn_implementation="eager",
        )
    )
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-4), nn.BCEWithLogitsLoss()

    def run():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            value = loss(model(features).logits, labels)
        value.backward()
        optimizer.step()
        value.item()

    return run


def ours(feature_shape, num_clips, num_classes, config, amp=False):
    """Return our step of the same model."""
    features, labels = make_batch(num_clips, feature_shape, num_classes)
    model = create_model("ast", num_classes, feature_shape, config)
    stepper = _stepper(model, num_clips, amp)
    return lambda: stepper.step(features, labels)


def _stepper(model, num_clips, amp=False):
    """Return our step, the batch in one slice."""
    optimizer = make_optimizer(model, OptimizationConfig(optimizer="adam", learning_rate=1e-4, weight_decay=0.0))
    return Stepper(
        model,
        optimizer,
        Loss("multi"),
        device=CPU,
        micro_batch_size=num_clips,
        amp_dtype=torch.bfloat16 if amp else None,
    )


WAYS = {"transformers, eager attention": (eager, False), "egoaudio": (ours, False), "egoaudio, --amp": (ours, True)}


@allocator.owned()  # as in the command
def measure_memory(way, feature_shape, num_clips, num_classes, config):
    """Return what two steps take in this process, in MB of resident memory."""
    make, amp = WAYS[way]
    run = make(feature_shape, num_clips, num_classes, config, amp)
    return _peak_of(lambda: (run(), run()))


@allocator.owned()
def measure_paper_step(feature_shape, num_classes, checkpointing):
    """Return memory and seconds of the first step of ``ast-paper`` on one clip."""
    torch.manual_seed(0)
    features, labels = make_batch(1, feature_shape, num_classes)
    model = create_model("ast-paper", num_classes, feature_shape, activation_checkpointing=checkpointing)
    stepper, took = _stepper(model, 1), []

    def step():
        watch = measuring.Stopwatch()
        stepper.step(features, labels)
        took.append(watch.took())

    memory = _peak_of(step)
    return memory | {"wall": took[0].wall, "cpu": took[0].cpu}


def _peak_of(work):
    """Return the peak of this process' resident memory during ``work``, and what it was before."""
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    work()
    return {"before_mb": before, "peak_mb": peak_memory_mb(CPU)}
