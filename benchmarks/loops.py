"""Loops that train a network: as people write it, Lightning, Hugging Face's Trainer, and ours.

In: ``Data``, clips of one egoaudio file. Out: a function that trains on them once and returns what that took from the
first batch to the last; starting a trainer (1 s for Hugging Face's) does not count. All take Adam with a learning rate
of 0.001 and binary cross-entropy, read the loss of each batch, and are otherwise left with their defaults.
"""

import functools
import logging
import tempfile

import measuring
import numpy as np
import torch
from torch import nn

from egoaudio.config.train import DataConfig, ModelConfig, OptimizationConfig, TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.hdf5 import reader
from egoaudio.models import create_model
from egoaudio.models.device import mixed_precision
from egoaudio.models.frontend import front_end_of_file
from egoaudio.models.small_cnn import SmallCNN
from egoaudio.system import allocator
from egoaudio.system.memory import peak_memory_mb, reset_peak_memory
from egoaudio.training.losses import Loss
from egoaudio.training.optimizer import make_optimizer
from egoaudio.training.step import Stepper

LEARNING_RATE = 1e-3
CPU = torch.device("cpu")
MEMORY_BATCHES = 3  # of a run whose memory is measured; the first already shows the peak but for the optimiser's state


class Data:
    """The first ``num_batches`` batches of a file, normalised, for a network on one of its features.

    Parameters
    ----------
    path : str or os.PathLike
    batch_size, num_batches : int
    model : str
        ``cnn`` on spectrograms; ``ast`` or ``cnn-small`` on log-mels, this one's clips between their neighbours as by
        default.
    on_the_fly : bool
        Compute the features from the file's waveforms.
    """

    def __init__(self, path, batch_size, num_batches, model="cnn", on_the_fly=False):
        config = TrainConfig(model=ModelConfig(model=model)).resolved()
        feature = "spectrogram" if model == "cnn" else "logmel"
        self.model, self.context_clips = model, config.data.context_clips
        front_end = None
        if on_the_fly:
            with reader.open(path) as file:
                front_end, _ = front_end_of_file(file, feature, self.context_clips)
        self.clips = ClipDataset(
            path,
            feature,
            np.arange(batch_size * num_batches),
            normalization=(0.5, 2.0),
            context_clips=self.context_clips,
            front_end=front_end,
        )
        self.batch_size, self.num_clips = batch_size, len(self.clips)
        self.feature_shape, self.num_classes = self.clips.feature_shape, self.clips.num_classes

    @functools.cached_property
    def tensors(self):
        """Features (n, T, F) and labels (n, C) in memory."""
        return tuple(torch.from_numpy(array) for array in self.clips.fetch(np.arange(self.num_clips)))


def network_of(data):
    """Return the network as people write it: its modules in the order of the paper, nothing tuned."""
    if data.model == "cnn":
        return papers_cnn(data)
    return SmallCNN(data.num_classes, data.feature_shape, context_clips=data.context_clips).to(
        memory_format=torch.contiguous_format
    )


def batch_of(data, features):
    """Return features (b, T, F) as the network takes them."""
    return features.unsqueeze(1) if data.model == "cnn" else features


def papers_cnn(data):
    """Return the paper's network as people write it."""
    layers, (num_frames, num_bins) = [], data.feature_shape
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (num_frames // 8) * (num_bins // 8), data.num_classes))


def plain(data, amp):
    """The loop of PyTorch's tutorials, on tensors in memory; a permutation by index is cheaper than a DataLoader."""
    features, labels = data.tensors
    model, loss = network_of(data), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def run():
        watch, total = measuring.Stopwatch(), 0.0
        for rows in torch.randperm(data.num_clips).split(data.batch_size):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                value = loss(model(batch_of(data, features[rows])), labels[rows])
            value.backward()
            optimizer.step()
            total += value.item()
        return watch.took()

    return run


def lightning(data, amp):
    """Lightning's Trainer over a DataLoader of tensors in memory."""
    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    features, labels = data.tensors
    dataset = torch.utils.data.TensorDataset(batch_of(data, features), labels)
    batches = torch.utils.data.DataLoader(dataset, data.batch_size, shuffle=True)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.loss, self.total = network_of(data), nn.BCEWithLogitsLoss(), 0.0

        def training_step(self, batch, _):
            return self.loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

        def on_train_start(self):
            self.watch = measuring.Stopwatch()

        def on_train_batch_end(self, outputs, *_):
            self.total += outputs["loss"].item()

        def on_train_end(self):
            self.took = self.watch.took()

    module = Module()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    def run():
        pl.Trainer(max_epochs=1, accelerator="cpu", precision="bf16-mixed" if amp else "32-true", **quiet).fit(
            module, batches
        )
        return module.took

    return run


def hugging_face(data, amp):
    """Hugging Face's Trainer on a dataset in memory; it has AdamW (here without decay, so Adam) and clips gradients."""
    import accelerate  # noqa: F401  (the Trainer says in many words that it is missing)
    import transformers

    features, labels = data.tensors

    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return len(features)

        def __getitem__(self, item):
            return {"x": batch_of(data, features[item : item + 1])[0], "labels": labels[item]}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.loss = network_of(data), nn.BCEWithLogitsLoss()

        def forward(self, x, labels):
            logits = self.network(x)
            return {"loss": self.loss(logits, labels), "logits": logits}

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.watch = measuring.Stopwatch()

        def on_train_end(self, *_, **__):
            self.took = self.watch.took()

    model, watch = Model(), Watch()

    def run():
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=data.batch_size,
                num_train_epochs=1,
                learning_rate=LEARNING_RATE,
                bf16=amp,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Clips(), callbacks=[watch])
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            trainer.train()
        return watch.took

    return run


def make_stepper(data, amp):
    """Return our step on a model, as ``egoaudio-train`` makes it."""
    model = create_model(data.model, data.num_classes, data.feature_shape, context_clips=data.context_clips)
    optimizer = make_optimizer(
        model, OptimizationConfig(optimizer="adam", learning_rate=LEARNING_RATE, weight_decay=0.0)
    )
    stepper = Stepper(
        model,
        optimizer,
        Loss("multi"),
        device=CPU,
        micro_batch_size=data.batch_size,
        amp_dtype=mixed_precision(CPU, amp)[0],
    )
    stepper.times_precisions = stepper.amp_dtype is not None
    return stepper


def ours_in_memory(data, amp):
    """Our step on batches that are ready: what the loop from a file cannot be faster than."""
    features, labels = data.tensors
    stepper = make_stepper(data, amp)

    def run():
        watch = measuring.Stopwatch()
        for batch, batch_labels in zip(features.split(data.batch_size), labels.split(data.batch_size), strict=True):
            stepper.step(batch, batch_labels)
        return watch.took()

    return run


def ours(data, amp, config=None):
    """What ``egoaudio-train`` does: random batches from the file, read and normalised while the step computes.

    ``config`` is a ``DataConfig`` with augmentations; none if not given.
    """
    stepper = make_stepper(data, amp)
    loader = Loader(data.clips, data.batch_size, config or DataConfig(), training=True)
    epochs = iter(range(10**9))

    def run():
        watch = measuring.Stopwatch()
        for batch in loader.epoch(next(epochs)):
            stepper.step(batch.features, batch.labels)
        return watch.took()

    return run


PEERS = {
    f"{name}, {'bfloat16' if amp else 'float32'}": functools.partial(loop, amp=amp)
    for name, loop in (("plain loop", plain), ("Lightning", lightning), ("Hugging Face's Trainer", hugging_face))
    for amp in (False, True)
}
OURS = {
    f"egoaudio, {where}, {'--amp' if amp else 'float32'}": functools.partial(loop, amp=amp)
    for amp in (False, True)
    for where, loop in (("from the file", ours), ("step on data in memory", ours_in_memory))
}


_started = {}  # the loops of this process


@allocator.owned()
def start(name, path, batch_size, num_batches, model="cnn"):
    """Make a loop of this process ready, and run it once."""
    _started[name] = (PEERS | OURS)[name](Data(path, batch_size, num_batches, model))
    _started[name]()


@allocator.owned()  # as in the command
def run(name):
    """Return the wall and the processor seconds of one more run of a loop."""
    took = _started[name]()
    return {"wall": took.wall, "cpu": took.cpu}


@allocator.owned()
def measure_memory(name, path, batch_size, model="cnn"):
    """Return the resident memory of one loop in this process, which must be fresh: ``peak_mb`` and ``before_mb``."""
    run = (PEERS | OURS)[name](Data(path, batch_size, MEMORY_BATCHES, model))
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    run()
    return {"before_mb": before, "peak_mb": peak_memory_mb(CPU)}
