"""Loops that train a network on a GPU: as people write it, Lightning, Hugging Face's Trainer, and ours.

In: ``Case``, a network and clips of one egoaudio file. Out: functions that train on all its batches and return ``Run``.
All take Adam with a learning rate of 0.001 and binary cross-entropy, read the loss of each batch (ours one batch later,
as our trainer does), compute matrix products in TF32, and are otherwise left with their defaults. The clips of the
others are in memory, behind a DataLoader with workers and pinned memory; ours come from the file. The first batches do
not count: they start workers and choose kernels.
"""

import functools
import itertools
import logging
import tempfile
import time
from dataclasses import dataclass

import loops
import numpy as np
import torch
from torch import nn

from egoaudio.config.train import DataConfig, ModelConfig, OptimizationConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.hdf5 import reader
from egoaudio.models import ACCEPTED_FEATURES, create_model
from egoaudio.models.device import computing_on
from egoaudio.models.frontend import front_end_of_file
from egoaudio.training.losses import Loss
from egoaudio.training.optimizer import make_optimizer
from egoaudio.training.step import Stepper

NUM_WORKERS = 4  # of the others' DataLoader


@dataclass(frozen=True)
class Case:
    """A network and the clips it is trained on."""

    name: str
    config: ModelConfig
    feature_shape: tuple
    batch_size: int
    num_batches: int
    context_clips: int = 0
    num_classes: int = 158

    @property
    def feature(self):
        """Name of the array in the file."""
        return ACCEPTED_FEATURES[self.config.model][0]

    @property
    def skipped(self):
        """Batches before the watch starts."""
        return max(self.num_batches // 4, 1)


@dataclass(frozen=True)
class Run:
    """What one loop took."""

    seconds: float
    """For a batch."""
    wait_fraction: float = 0.0
    """Share of the time that it waited for data; only ours knows."""


def data_of(case, path, on_the_fly=False):
    """Return the dataset of a case, normalised; its features from the file, or computed by the loader."""
    rows, front_end = np.arange(case.batch_size * case.num_batches), None
    if on_the_fly:
        with reader.open(path) as file:
            front_end, _ = front_end_of_file(file, case.feature, case.context_clips)
    how = {"normalization": (0.5, 2.0), "context_clips": case.context_clips, "front_end": front_end}
    return ClipDataset(path, case.feature, rows, **how)


def our_network(case):
    """Return the network as ``egoaudio-train`` makes it."""
    shape = ((2 * case.context_clips + 1) * case.feature_shape[0], *case.feature_shape[1:])
    return create_model(case.config.model, case.num_classes, shape, case.config, context_clips=case.context_clips)


class Peer(nn.Module):
    """The same network as people write it; logits of features (b, T, F)."""

    def __init__(self, case):
        super().__init__()
        self.adds_channel = case.config.model == "cnn"
        if self.adds_channel:
            self.network = loops.papers_cnn(case)
        elif case.config.model.startswith("ast"):
            self.network = transformers_ast(case)
        else:
            self.network = our_network(case).to(memory_format=torch.contiguous_format)

    def forward(self, x):
        """Return logits (b, C)."""
        logits = self.network(x.unsqueeze(1) if self.adds_channel else x)
        return getattr(logits, "logits", logits)


def transformers_ast(case):
    """Return transformers' AST in the sizes of a case, with the attention that it chooses itself."""
    from transformers import ASTForAudioClassification

    config = our_network(case).network.config.to_dict()
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        config.pop(name, None)
    from transformers import ASTConfig

    return ASTForAudioClassification(ASTConfig.from_dict(config))


class Watch:
    """Times the batches after the first ones."""

    def __init__(self, case, device):
        self.case, self.device, self.count, self.started = case, device, 0, 0.0

    def batch_done(self):
        """Count a batch."""
        self.count += 1
        if self.count == self.case.skipped:
            self._wait()
            self.started = time.perf_counter()

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self):
        """Return the seconds of a batch that counts."""
        self._wait()
        return (time.perf_counter() - self.started) / (self.count - self.case.skipped)


def batches_in_memory(case, dataset, device, num_workers):
    """Return a DataLoader over the clips in memory."""
    tensors = (torch.from_numpy(array) for array in dataset.fetch(np.arange(len(dataset))))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors),
        case.batch_size,
        shuffle=True,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
    )


def plain(case, dataset, device, amp, num_workers=NUM_WORKERS):
    """The loop of PyTorch's tutorials."""
    batches, model, loss = batches_in_memory(case, dataset, device, num_workers), Peer(case).to(device), None
    loss = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=loops.LEARNING_RATE)

    def run():
        watch, total = Watch(case, device), 0.0
        for features, labels in batches:
            features, labels = features.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                value = loss(model(features), labels)
            value.backward()
            optimizer.step()
            total += value.item()
            watch.batch_done()
        return Run(watch.seconds())

    return run


def lightning(case, dataset, device, amp):
    """Lightning's Trainer."""
    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = batches_in_memory(case, dataset, device, NUM_WORKERS)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.loss, self.total = Peer(case), nn.BCEWithLogitsLoss(), 0.0

        def training_step(self, batch, _):
            return self.loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=loops.LEARNING_RATE)

        def on_train_start(self):
            self.watch = Watch(case, device)

        def on_train_batch_end(self, outputs, *_):
            self.total += outputs["loss"].item()
            self.watch.batch_done()

    module = Module()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def run():
        accelerator = {"cuda": "gpu"}.get(device.type, "cpu")
        precision = "bf16-mixed" if amp else "32-true"
        pl.Trainer(max_epochs=1, accelerator=accelerator, devices=1, precision=precision, **quiet).fit(module, batches)
        return Run(module.watch.seconds())

    return run


def hugging_face(case, dataset, device, amp):
    """Hugging Face's Trainer; it has AdamW (here without decay, so Adam) and clips gradients."""
    import accelerate  # noqa: F401  (the Trainer says in many words that it is missing)
    import transformers

    features, labels = (torch.from_numpy(array) for array in dataset.fetch(np.arange(len(dataset))))

    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return len(features)

        def __getitem__(self, item):
            return {"x": features[item], "labels": labels[item]}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.loss = Peer(case), nn.BCEWithLogitsLoss()

        def forward(self, x, labels):
            logits = self.network(x)
            return {"loss": self.loss(logits, labels), "logits": logits}

    class Counter(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.watch = Watch(case, device)

        def on_step_end(self, *_, **__):
            self.watch.batch_done()

    model, counter = Model(), Counter()

    def run():
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=case.batch_size,
                num_train_epochs=1,
                learning_rate=loops.LEARNING_RATE,
                bf16=amp,
                use_cpu=device.type == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_num_workers=NUM_WORKERS,
                dataloader_pin_memory=device.type == "cuda",
            )
            trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Clips(), callbacks=[counter])
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            trainer.train()
        return Run(counter.watch.seconds())

    return run


def make_stepper(case, device, amp, compiled=False):
    """Return our step on a model, as ``egoaudio-train`` makes it."""
    model = our_network(case).to(device)
    rate = OptimizationConfig(optimizer="adam", learning_rate=loops.LEARNING_RATE, weight_decay=0.0)
    return Stepper(
        torch.compile(model) if compiled else model,
        make_optimizer(model, rate),
        Loss("multi", device=device),
        device=device,
        amp_dtype=torch.bfloat16 if amp else None,
    )


def ours(case, dataset, device, amp, compiled=False):
    """What ``egoaudio-train`` does: batches from the file, read and copied while the step computes."""
    stepper = make_stepper(case, device, amp, compiled)
    loader = Loader(dataset, case.batch_size, DataConfig(), device=device, training=True)
    epochs = itertools.count()

    def run():
        watch, waited = Watch(case, device), 0.0
        with computing_on(device):
            total, unread = 0.0, 0.0
            for batch in loader.epoch(next(epochs)):
                loss = stepper.launch(batch.features, batch.labels)
                total, unread = total + float(unread), loss  # a batch's loss is read while the next one is computed
                watch.batch_done()
                if watch.count == case.skipped:
                    waited = loader.wait_seconds
            seconds = watch.seconds()
        return Run(seconds, (loader.wait_seconds - waited) / (seconds * (watch.count - case.skipped)))

    return run


def step_alone(case, dataset, device, amp):
    """Our step, on one batch that is on the device already: the floor of ``ours``."""
    stepper = make_stepper(case, device, amp)
    batch = next(Loader(dataset, case.batch_size, DataConfig(), device=device, training=True).epoch(0))

    def run():
        watch, total, unread = Watch(case, device), 0.0, 0.0
        with computing_on(device):
            for _ in range(case.num_batches):
                loss = stepper.launch(batch.features, batch.labels)
                total, unread = total + float(unread), loss
                watch.batch_done()
        return Run(watch.seconds())

    return run


def batches_alone(case, dataset, device, amp):
    """Our batches, which nobody computes with."""
    loader = Loader(dataset, case.batch_size, DataConfig(), device=device, training=True)
    epochs = itertools.count()

    def run():
        watch = Watch(case, device)
        for _ in loader.epoch(next(epochs)):
            watch.batch_done()
        return Run(watch.seconds())

    return run


PEERS = {
    "plain loop": plain,
    "plain loop, no workers": functools.partial(plain, num_workers=0),
    "Lightning": lightning,
    "Hugging Face's Trainer": hugging_face,
}
OURS = {"egoaudio": ours}
PARTS = {"batches alone": batches_alone, "step alone": step_alone, "training": ours}
COMPILED = {"egoaudio --compile": functools.partial(ours, compiled=True)}
