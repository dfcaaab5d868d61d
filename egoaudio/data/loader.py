"""Batches of a dataset, read ahead: the loader of training and evaluation.

In: a ``ClipDataset`` (which defines what an item is), a batch size, a ``DataConfig``, a seed. Out: ``Batch``, tensors
on the device, normalised and, in training, augmented; where the dataset has a front end, it computes the features here,
of sound that is augmented, beside the consumer's work. The order of the items follows from seed and epoch alone.
Batches are read ahead in a thread, or in worker processes, which copy every batch once more and pay off only where
decompressing a repacked file is the limit.

A batch of 256 rows of 131 KB takes 1.8 ms of processor time, 0.77 of the speed of ``numpy.take`` from memory
(``benchmarks/README.md``).
"""

import contextlib
import gc
import itertools
import math
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from egoaudio.config.train import DataConfig
from egoaudio.data.augment import Augmentation, Part, Partners
from egoaudio.data.balance import balanced_probabilities
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.gpu_idle import GpuIdle
from egoaudio.data.ranks import ALONE, Group
from egoaudio.data.seeds import AUGMENTATION, ORDER, generator
from egoaudio.data.sound_changes import together
from egoaudio.errors import TrainingError, first_line
from egoaudio.system import surroundings
from egoaudio.system.memory import is_out_of_memory

# Batches that are ready or being made while the consumer works on one. Two cover one slow batch; more only cost memory.
READ_AHEAD = 2
# Batches that each worker process keeps ready or in work, and how long the next one may take: workers whose batch does
# not fit into shared memory say nothing, and torch would wait for ever.
_WORKER_BATCHES, _WORKER_SECONDS = 2, 600

# --shuffle block: neighbouring items that stay together. 16 rows of 131 KB are 2 MB, which a spinning disk reads at 60
# % of its full speed; a batch of 64 still comes from four places.
BLOCK_ITEMS = 16


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """A batch of the optimiser's, or a rank's share of it."""

    features: torch.Tensor
    """float32 (b, T, F), normalised, on the device; with context the T of a clip and its neighbours."""
    labels: torch.Tensor
    """float32 (b, C), on the device; with a teacher (b, 2 * C), its scores after the labels."""
    rows: np.ndarray
    """int64 (b,): rows of the file."""
    num_clips: int
    """Of the whole batch, over all ranks."""
    ready: torch.cuda.Event | None = None
    """Reached by the GPU when it has made the tensors; ``Loader.epoch`` has its stream wait for it."""


class Loader:
    """Batches of a dataset, read ahead.

    Parameters
    ----------
    dataset : ClipDataset
    batch_size : int
    config : DataConfig
        ``shuffle``, ``balanced_sampling``, ``loader_workers`` and the augmentations.
    seed : int
    device : str or torch.device
    training : bool
        Shuffle and augment. Otherwise the items come in order, unchanged.
    teacher : callable, optional
        Takes rows of the file (b,) and returns float32 scores (b, C), which become further columns of the labels.
    group : Group
        The ranks. In training each has its share of every batch, which may be empty; else each has every so many-th
        batch, which is that of one rank to the last digit.

    Attributes
    ----------
    wait_seconds : float
        How long the device has lacked data in the present epoch: on a GPU the time for which it idled meanwhile.

    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        config: DataConfig,
        seed: int = 0,
        device: str | torch.device = "cpu",
        training: bool = False,
        teacher: Callable[[np.ndarray], np.ndarray] | None = None,
        group: Group = ALONE,
    ) -> None:
        self.dataset, self.batch_size, self.config = dataset, batch_size, config
        self.seed, self.training = seed, training
        self.device, self.teacher, self.group = torch.device(device), teacher, group
        self.wait_seconds = 0.0
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._makes_again = self.device.type != "cpu"  # where what was read is changed in place
        self._in_flight: deque[tuple[torch.cuda.Event, tuple[torch.Tensor, ...]]] = deque()
        self._front_end = None if dataset.front_end is None else dataset.front_end.to(self.device).eval()
        # None without changes: making a generator that is not used would take 1 % of a batch's time.
        self._augmentation = Augmentation.of_dataset(dataset, config) if training else None
        self._cumulative = None
        if training and config.balanced_sampling:
            self._cumulative = np.cumsum(balanced_probabilities(dataset.file.labels, dataset.rows, dataset.classes))
        # A GPU is sent what is stored, which may be smaller, and converts and normalises it.
        dtype = np.dtype(np.float32) if self._copies is None else dataset.dtype
        shape = min(batch_size, len(dataset)), *dataset.item_shape
        self._buffers = _Buffers(shape, dtype, pinned=self._copies is not None)
        self._batches: list[np.ndarray] = []
        self._workers = None
        if config.loader_workers:
            self._require_shared_memory()
            self._workers = torch.utils.data.DataLoader(
                dataset,
                batch_size=None,
                sampler=self._batches,
                num_workers=config.loader_workers,
                persistent_workers=True,
                pin_memory=self._copies is not None,
                prefetch_factor=_WORKER_BATCHES,
                timeout=_WORKER_SECONDS,
            )

    def _require_shared_memory(self) -> None:
        """Refuse to start processes whose batches would not fit into shared memory: torch would wait for ever."""
        num_clips = min(self.batch_size, len(self.dataset))
        batch_bytes = num_clips * (4 * math.prod(self.dataset.item_shape) + 4 * self.dataset.num_classes)
        workers = self.config.loader_workers
        words = (
            f"`loader_workers={workers}` passes its batches through it; `loader_workers=0` needs none, and is as fast"
        )
        surroundings.require_shared_memory((_WORKER_BATCHES * workers + 1) * batch_bytes + (64 << 10), words)

    def __len__(self) -> int:
        """Return the number of batches in an epoch; the last one may be smaller."""
        return -(-len(self.dataset) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the items of an epoch in order, int64 (n,): the same for the same seed and epoch."""
        num_items = len(self.dataset)
        if not self.training:
            return np.arange(num_items)
        rng = generator(self.seed, ORDER, epoch)
        if self._cumulative is not None:
            # The last sum is 1 up to rounding; a draw beyond it takes the last item.
            return np.minimum(np.searchsorted(self._cumulative, rng.random(num_items), side="right"), num_items - 1)
        if self.config.shuffle == "block":
            blocks = rng.permutation(-(-num_items // BLOCK_ITEMS))
            items = (blocks[:, None] * BLOCK_ITEMS + np.arange(BLOCK_ITEMS)).ravel()
            return items[items < num_items]
        return rng.permutation(num_items)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, or this rank's part of them, beginning with ``start_batch``.

        A batch's memory is reused only when nothing refers to its tensors any more. To stop early, leave the loop: the
        thread ends with the generator.

        Raises
        ------
        TrainingError
            When the file changes meanwhile.

        """
        self.wait_seconds = 0.0
        plans = self._plans(epoch, start_batch)
        read = self._reader(epoch, plans)
        numbers = iter(range(len(plans)))
        idle = None if self._copies is None else GpuIdle(self.device)
        # One thread: on a GPU four were slower, as each of them takes the interpreter's lock from the training loop.
        with ThreadPoolExecutor(1, thread_name_prefix="egoaudio-loader") as thread:
            pending = deque(thread.submit(read, number) for number in itertools.islice(numbers, READ_AHEAD))
            try:
                while pending:
                    asked = time.perf_counter()
                    with contextlib.nullcontext() if idle is None else idle.waiting():
                        made = pending.popleft().result()
                        batch = made if isinstance(made, Batch) else thread.submit(self._make_again, made).result()
                        del made
                        if batch.ready is not None:
                            torch.cuda.current_stream(self.device).wait_event(batch.ready)
                    waited = time.perf_counter() - asked
                    self.wait_seconds = self.wait_seconds + waited if idle is None else idle.seconds
                    pending.extend(thread.submit(read, number) for number in itertools.islice(numbers, 1))
                    if self._copies is not None:
                        # Made on another stream: its memory must not be reused while this one still computes with it.
                        for tensor in (batch.features, batch.labels):
                            tensor.record_stream(torch.cuda.current_stream(self.device))
                    yield batch
                    del batch
                if idle is not None:
                    idle.finish()
                    self.wait_seconds = idle.seconds
            finally:
                for future in pending:
                    future.cancel()

    def _plans(self, epoch: int, start_batch: int) -> list["_Plan"]:
        """Return what to read for each batch of an epoch, beginning with ``start_batch``."""
        order, plans = self.order(epoch), []
        numbers = range(start_batch, len(self))
        for number in numbers if self.training else numbers[self.group.rank :: self.group.size]:
            items = order[number * self.batch_size : (number + 1) * self.batch_size]
            part = Part.whole(len(items))
            if self.training and self.group.size > 1:
                partners = Partners()
                if self._augmentation is not None:
                    partners = Partners.draw(len(items), generator(self.seed, AUGMENTATION, epoch, number), self.config)
                part = Part.of(self.group.share(len(items)), len(items), partners)
            plans.append(_Plan(number, items[part.places], part))
        return plans

    def _reader(self, epoch: int, plans: list["_Plan"]) -> Callable[[int], "Batch | Callable[[], Batch]"]:
        """Return the function that makes a batch of an epoch; the reading thread calls it with 0, 1, 2 and so on.

        Where the device's memory ran out for a batch, it returns what makes it of what was read.
        """
        if self._workers is not None:
            self._batches[:] = [plan.items for plan in plans]
            arriving = iter(self._workers)  # here, not in the thread: this starts processes and sets signal handlers

            def take(at: int) -> Batch | Callable[[], Batch]:
                try:
                    features, labels = next(arriving)
                except Exception as error:
                    # torch's frames and its error refer to each other and to the workers, which would take 10 s to end.
                    traceback.clear_frames(error.__traceback__)
                    self.dataset.source.check_unchanged()  # names the file; a worker's death by SIGBUS does not
                    if isinstance(error, RuntimeError):  # torch's, about a worker that died or does not answer
                        reason = first_line(error)
                        raise TrainingError(
                            f"the processes of `loader_workers` failed ({reason}): give `loader_workers=0`, which "
                            "needs none"
                        ) from error
                    raise
                return self._attempt(partial(self._finish, features, labels, epoch, plans[at]))

            return take

        def read(at: int) -> Batch | Callable[[], Batch]:
            for ahead in plans[at : at + 2] if at == 0 else plans[at + 1 : at + 2]:
                self.dataset.announce(ahead.items)
            items = plans[at].items
            out = self._buffers.take(len(items))
            features, labels = self.dataset.fetch(items, out, normalize=self._copies is None)
            in_memory = torch.from_numpy(features), torch.from_numpy(labels)
            return self._attempt(partial(self._finish, *in_memory, epoch, plans[at]))

        return read

    def _attempt(self, finish: Callable[[], Batch]) -> "Batch | Callable[[], Batch]":
        """Return the batch; or ``finish``, if a GPU's memory ran out: the consumer may just try how much there is."""
        try:
            return finish()
        except Exception as error:
            if not self._makes_again or not is_out_of_memory(error):
                raise
        return finish

    def _make_again(self, finish: Callable[[], Batch]) -> Batch:
        """Make a batch for which memory ran out, now that the consumer has released its own.

        Raises
        ------
        TrainingError
            When there is still too little.
        """
        gc.collect()
        torch.cuda.empty_cache()
        try:
            return finish()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise TrainingError(
                f"memory ran out on {self.device} where a batch of {self.batch_size} clips is copied to it and changed "
                f"({reason}): give `batch_size={max(self.batch_size // 2, 1)}`, or end what else uses its memory"
            ) from None

    def _finish(self, features: torch.Tensor, labels: torch.Tensor, epoch: int, plan: "_Plan") -> Batch:
        """Move a batch to the device and augment it."""
        rows = self.dataset.rows[plan.items]
        if self.teacher is not None:
            labels = torch.cat((labels, torch.from_numpy(self.teacher(rows))), dim=1)  # mixup then mixes both equally
        in_memory = features, labels
        with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            features, labels = (tensor.to(self.device, non_blocking=self._copies is not None) for tensor in in_memory)
            if self._copies is not None and self._workers is None:
                features = self._convert(features)
            if self._augmentation is not None:
                rng = generator(self.seed, AUGMENTATION, epoch, plan.number)
                features, labels = self._augmentation(features, labels, rng, plan.part, self._compute)
            else:
                features = self._compute(features)
        ready = None if self._copies is None else self._send(in_memory)
        return Batch(features, labels, rows[: plan.part.num_own], plan.part.num_clips, ready)

    def _convert(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32 of what is stored, on a GPU, normalised if it is features; may be the same memory."""
        features = stored.float()
        if self.dataset.unit != 1:
            features.mul_(self.dataset.unit)
        if self._front_end is None:
            mean, std = self.dataset.normalization
            features.sub_(mean).mul_(1.0 / std)
        return features

    def _send(self, in_memory: tuple[torch.Tensor, ...]) -> torch.cuda.Event:
        """Return the event after what was just launched; the next batch is read while the GPU works on this one.

        Until then what is copied from memory is kept, as a buffer that nobody refers to is filled again. Only the
        reading thread waits, for the batch before.
        """
        ready = torch.cuda.Event(blocking=True)
        ready.record(self._copies)
        self._in_flight.append((ready, in_memory))
        if len(self._in_flight) > 1:
            self._in_flight.popleft()[0].synchronize()
        return ready

    @torch.no_grad()
    def _compute(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return normalised features (b, T, F) of waveforms (b, num_samples), some clips at a time.

        Without a front end, what was read are the features.
        """
        if self._front_end is None:
            return waveforms
        mean, std = self.dataset.normalization
        features = torch.empty((len(waveforms), *self.dataset.feature_shape), device=self.device)
        for rows in together(waveforms):
            out = features[rows]
            out.copy_(self._front_end(waveforms[rows]))
            if (mean, std) != (0.0, 1.0):
                out.sub_(mean).mul_(1.0 / std)
        return features


@dataclass(frozen=True, eq=False, slots=True)
class _Plan:
    """What is read for a batch."""

    number: int
    """Of the batch in its epoch."""
    items: np.ndarray
    """int64 (m,): items of the dataset."""
    part: Part
    """Which clips of the batch they are."""


class _Buffers:
    """Reused arrays for batches: touching new memory takes as long as the gather itself.

    An array is free again when the last tensor or array made of it is gone, however long the consumer keeps it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, pinned: bool) -> None:
        self._shape, self._dtype, self._pinned = shape, dtype, pinned
        self._free: deque[np.ndarray] = deque(maxlen=READ_AHEAD + 2)

    def take(self, num_clips: int) -> np.ndarray:
        """Return an array (num_clips, ...) that is not in use."""
        if self._free:
            whole = self._free.pop()
        elif self._pinned:
            dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype
            whole = torch.empty(self._shape, dtype=dtype, pin_memory=True).numpy()
        else:
            # NumPy asks for huge pages, torch does not: 20 % faster to fill.
            whole = np.empty(self._shape, self._dtype)
        part = whole[:num_clips]
        weakref.finalize(part, self._free.append, whole).atexit = False
        return part
