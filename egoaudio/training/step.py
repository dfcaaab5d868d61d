"""A step of the optimiser that survives running out of memory.

The optimiser's batch never changes. It goes through the model in micro-batches; each one's loss is divided by the
normaliser of the whole batch, so the gradients add up to the whole batch's, up to rounding. When memory runs out, all
effects of the attempt are undone (gradients, batch norm's statistics, random states), the micro-batch is halved and the
*same* batch is computed again, with the same dropout masks. At one clip, activations are recomputed instead of kept
(activation checkpointing), on a CPU before the first attempt if need be; after that ``TrainingError`` says what was
tried.

The optimiser's state is made before the first forward pass: the size that is found then fits for every later step, and
a fused optimiser takes no memory while it changes the weights.

The method is Composer's automatic microbatching, here for CPUs, too. Of several ranks each computes its share, and
sends nothing meanwhile (DistributedDataParallel's hooks would wait for ever for a rank that ran out of memory). Then
all halve when one has to; when none has to, the gradients are summed (``gradients``).
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from egoaudio.data.ranks import ALONE, Group
from egoaudio.errors import TrainingError
from egoaudio.models.device import name_of
from egoaudio.models.dropout import place_micro_batch, random_layers
from egoaudio.models.micro_batch import MicroBatches
from egoaudio.models.scorer import ClipLoss
from egoaudio.system import allocator
from egoaudio.training.captured_step import CapturedStep, Captures
from egoaudio.training.gradients import SharedGradients
from egoaudio.training.memory_messages import describe_half_way, describe_no_fit, describe_size
from egoaudio.training.optimizer import make_state, trained
from egoaudio.training.pending_loss import PendingLoss

logger = logging.getLogger(__name__)
TIMED_PASSES = 3  # of each precision; the first does not count: it makes allocations that the later ones reuse


class Stepper(MicroBatches):
    """Does steps of an optimiser in micro-batches that fit into memory.

    Parameters
    ----------
    model : torch.nn.Module
        From ``create_model``, on ``device``; compiled or not.
    optimizer : torch.optim.Adam or torch.optim.AdamW
        Over the model's parameters.
    loss : Loss
        ``sum`` and ``normaliser`` of logits and labels.
    device : torch.device
        Where the model is.
    micro_batch_size : int or None
        Clips on the device at once; None starts with the whole batch, or on a CPU with the number that seems to fit.
    amp_dtype : torch.dtype or None
        Type of autocast; None computes in float32.
    scaler : torch.amp.GradScaler or None
        For float16.
    clip_gradient : float
        Largest norm of the gradient; 0 does not clip.
    log : callable
        Called with a line of text whenever the size is found or changes.
    group : Group
        The ranks, each of which does the same steps on its share of each batch.

    Attributes
    ----------
    micro_batch_size : int or None
        The size in use, the same in all ranks.
    activation_checkpointing : bool
        Whether the search had to turn it on.
    times_precisions : bool
        Whether the first step measures if ``amp_dtype`` is faster than float32, and uses float32 if it is not.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: ClipLoss,
        *,
        device: torch.device | str,
        micro_batch_size: int | None = None,
        amp_dtype: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clip_gradient: float = 0.0,
        log: Callable[[str], object] = logger.info,
        group: Group = ALONE,
    ) -> None:
        super().__init__(model, device, micro_batch_size, amp_dtype, log)
        self.group = group
        self.num_sharing = group.local_size if self.device.type == "cpu" else 1
        self.optimizer = optimizer
        self.loss = loss
        self.scaler = scaler
        self.clip_gradient = clip_gradient
        self.activation_checkpointing = False
        self.times_precisions = False
        self._random_layers = random_layers(model)
        self._captures = Captures(self.device, log)
        self._prepared = False
        self._fresh = False  # whether the optimiser has made no update yet
        self._tried: list[str] = []
        self._gradients: SharedGradients | None = None  # of several ranks

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs in order not to search again."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "activation_checkpointing": self.activation_checkpointing,
            "amp_dtype": name_of(self.amp_dtype),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the sizes of ``state_dict``."""
        self.micro_batch_size = state["micro_batch_size"]
        if self.times_precisions and "amp_dtype" in state:
            self.amp_dtype = state["amp_dtype"] and getattr(torch, state["amp_dtype"])
            self.times_precisions = False
        if state["activation_checkpointing"] and not self.activation_checkpointing:
            self._turn_on_checkpointing()

    def step(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Do one step of the optimiser on one batch, and wait for its loss."""
        return float(self.launch(features, labels))

    def launch(self, features: torch.Tensor, labels: torch.Tensor) -> PendingLoss:
        """Do one step of the optimiser on one batch; a GPU may still be computing when this returns.

        Of several ranks each gives its share of the batch, and all do the same step. The seed of its dropout is drawn
        from torch's CPU generator, whose state belongs in checkpoints.

        Parameters
        ----------
        features : torch.Tensor
            (b, T, F), on the device; a rank's are contiguous clips of the batch in the order of the ranks, or none.
        labels : torch.Tensor
            (b, C), float, on the device.

        Returns
        -------
        PendingLoss
            Of the whole batch, before the step. If it is not finite, the weights are unchanged.

        Raises
        ------
        TrainingError
            When one clip does not fit, even with activation checkpointing.
        """
        self._prepare(features)
        seed = int(torch.randint(2**62, ()))
        if self.times_precisions:
            self._choose_precision(features, labels, seed)
        if (captured := self._find_captured(features, labels)) is not None:
            return captured.replay(features, labels, seed)
        loss = torch.tensor(self._step_until_it_fits(features, labels, seed), dtype=torch.float64)
        self.optimizer.zero_grad(set_to_none=True)
        return PendingLoss(loss)

    # -------------------------------------------------------------------------------------- before the first step

    def _prepare(self, features: torch.Tensor) -> None:
        """Make the optimiser's state and choose the first size, once."""
        if self._prepared:
            return
        self._fresh = not self.optimizer.state
        self._prepare_optimizer()
        if self.group.size > 1:
            self._gradients = SharedGradients(trained(self.optimizer), self.model.buffers(), self.group, self.device)
        if self.micro_batch_size is None:
            self._find_size(features)
        if self.micro_batch_size == 1 or self.model.activation_checkpointing:
            allocator.release_blocks()
        elif self.device.type == "cpu":
            allocator.reuse_blocks()  # the next micro-batch takes the same blocks again
        self._prepared = True

    def _find_size(self, features: torch.Tensor) -> None:
        """Choose the first size, and activation checkpointing if one clip needs it, for all ranks."""
        size = float("inf")  # of a rank without clips
        if len(features):
            saved = self._snapshot()
            size = self.first_size(features)
            self._undo(saved)
        found = self.group.numbers(size, self.model.activation_checkpointing)
        self.micro_batch_size = int(found[:, 0].min())
        if found[:, 1].any() and not self.model.activation_checkpointing:
            self._turn_on_checkpointing()

    def _choose_precision(self, features: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        """Time forward and backward pass in ``amp_dtype`` and in float32, and keep the faster; nothing else changes."""
        assert self.micro_batch_size is not None
        saved = self._snapshot()
        seconds: dict[torch.dtype | None, float] = {}
        rows, normaliser = slice(min(self.micro_batch_size, len(features))), self.loss.normaliser(labels) or 1.0
        for dtype in (self.amp_dtype, None):
            self.amp_dtype = dtype
            times = []
            for _ in range(TIMED_PASSES):
                started = time.perf_counter()
                _, failure = self.attempt(self._accumulate, features[rows], labels[rows], normaliser, seed)
                times.append(math.inf if failure else time.perf_counter() - started)
                self._undo(saved)
            seconds[dtype] = float(self.group.numbers(min(times[1:])).max())
        self.amp_dtype = min(seconds, key=lambda dtype: seconds[dtype])
        (wanted, its_seconds), (_, plain) = seconds.items()
        fastest, slowest = sorted((plain, its_seconds))
        if math.isinf(fastest):  # no memory for either: the step finds a smaller size, and the next one times that
            return
        self.times_precisions = False
        taken = name_of(self.amp_dtype) or "float32"
        other = "float32" if self.amp_dtype == wanted else name_of(wanted)
        why = f"which is {slowest / fastest:.1f} times as fast as {other} here"
        if math.isinf(slowest):
            why = f"as there is no memory for {other} here"
        self.log(f"`amp`: computing in {taken}, {why}")

    def expect_one_clip(self, needed: float, free: int) -> None:
        """Turn on activation checkpointing if one clip seems not to fit: on a CPU the first attempt could be killed."""
        if needed > free and not self.model.activation_checkpointing:
            self._turn_on_checkpointing()
            self.log(
                f"activation checkpointing is on, as one clip seems not to fit into the {free / 2**20:,.0f} MB that "
                "are free without it"
            )

    def _prepare_optimizer(self) -> None:
        """Make the optimiser's state before its first update, if there is memory for it."""
        if self._fresh:
            self.optimizer.state.clear()  # a failed first update may have left a part of it
            _, failure = self.attempt(make_state, self.optimizer)
            if failure:  # the attempts that follow find out whether a smaller size fits
                self.optimizer.state.clear()
                self.release()

    # ----------------------------------------------------------------------------- a captured step, on a GPU

    def _find_captured(self, features: torch.Tensor, labels: torch.Tensor) -> CapturedStep | None:
        """Return the captured step on batches like this one, if there is one, or if it is time to capture it."""
        assert self.micro_batch_size is not None
        is_whole = self.micro_batch_size >= len(features) and not self.model.activation_checkpointing
        is_compiled = hasattr(self.model, "_orig_mod")  # and was never captured: torch launches it
        if self.scaler is not None or not is_whole or is_compiled or self.group.size > 1:
            return None
        parts = self.model, self.loss, self.autocast, self._random_layers, self.optimizer, self._update
        return self._captures.find(features, lambda: CapturedStep(*parts, features, labels))

    # ------------------------------------------------------------------------------------------- the step itself

    def _step_until_it_fits(self, features: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
        """Do the step, halving the micro-batch until it fits into memory; return the batch's loss."""
        assert self.micro_batch_size is not None
        saved = self._snapshot()
        updates = self._updates_done()
        shares = self.group.numbers(self.loss.normaliser(labels), len(features))  # (ranks, 2)
        normaliser = float(shares[:, 0].sum()) or 1.0  # 0 if every label has weight 0
        num_clips = shares[:, 1].astype(int)
        first_clip, most_clips = int(num_clips[: self.group.rank].sum()), int(num_clips.max())
        while True:
            own_loss, failure = self.attempt(self._accumulate, features, labels, normaliser, seed, first_clip)
            outcome = self.group.numbers(own_loss is None, own_loss or 0.0)  # (ranks, 2)
            fits = not outcome[:, 0].any()
            if fits:
                loss = float(outcome[:, 1].sum())
                failure = self._update(len(features) / num_clips.sum()) if math.isfinite(loss) else None
                if failure is None:
                    break
                if self.group.size > 1 or bool(self._updates_done() != updates):
                    raise TrainingError(describe_half_way(failure, self.micro_batch_size))
            self._undo(saved)
            self.release()
            failures = self.group.objects(failure)
            self._shrink(features, most_clips, next(filter(None, failures)))
        self._fresh = False
        if self._tried:
            self.log(f"micro-batch: {self._describe(most_clips)}, as memory ran out with {', then '.join(self._tried)}")
            self._tried = []
        return loss

    def _accumulate(
        self, features: torch.Tensor, labels: torch.Tensor, normaliser: float, seed: int, first_clip: int = 0
    ) -> float:
        """Add up the gradients of a batch, or of a rank's share, which begins at ``first_clip``; return its loss."""
        assert self.micro_batch_size is not None
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(features), self.micro_batch_size):
            rows = slice(start, start + self.micro_batch_size)
            place_micro_batch(self._random_layers, seed, first_clip + start)
            with self.autocast():
                logits = self.model(features[rows])
            loss = self.loss.sum(logits, labels[rows]) / normaliser
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += loss.detach()
        return float(total)

    def _update(self, share: float = 1.0) -> str | None:
        """Change the weights by the gradients of all ranks; return the message of an out-of-memory error, or None.

        Of several ranks some may have changed their weights when one runs out of memory, and cannot do the batch again.
        By then it has nothing else in memory: it releases what it keeps, and tries once more.
        """
        if self._gradients is not None:
            self._gradients.add_up(share)
        updates = self._updates_done() if self.group.size > 1 else None
        for work in (self._unscale, self._clip, self._step):
            _, failure = self.attempt(work)
            if failure and updates is not None and bool(self._updates_done() == updates):
                self.release()
                _, failure = self.attempt(work)
            if failure:
                return failure
        return None

    def _unscale(self) -> None:
        """Undo the scaling of float16's gradients."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def _clip(self) -> None:
        """Limit the norm of the gradient."""
        if self.clip_gradient > 0:
            torch.nn.utils.clip_grad_norm_(trained(self.optimizer), self.clip_gradient)

    def _step(self) -> None:
        """Do the optimiser's step."""
        if self.scaler is None:
            self.optimizer.step()
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _updates_done(self) -> torch.Tensor:
        """Return the optimiser's count of updates of its first parameter, the first thing that an update changes.

        A scalar tensor on the device, as reading it on every step would make the host wait for a GPU.
        """
        state = self.optimizer.state.get(self.optimizer.param_groups[0]["params"][0], {})
        return torch.as_tensor(state.get("step", 0.0), device=self.device).clone()

    # ------------------------------------------------------------------------------------------- after a failure

    def _snapshot(self) -> tuple[torch.Tensor, torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return what an attempt changes besides gradients: random states and buffers (batch norm's statistics)."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), cuda, [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    def _undo(self, saved: tuple[torch.Tensor, torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
        """Undo an attempt: restore gradients, scaler, random states and buffers; the heap stays as it is."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            # The old one may have unscaled already, and refuses to do so again; its update() would change the scale.
            fresh = torch.amp.GradScaler(self.device.type)
            fresh.load_state_dict(self.scaler.state_dict())
            self.scaler = fresh
        self._prepare_optimizer()
        random_state, cuda, buffers = saved
        torch.set_rng_state(random_state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def _shrink(self, features: torch.Tensor, most_clips: int, failure: str) -> None:
        """Halve the micro-batch; at one clip turn on activation checkpointing; after that raise TrainingError.

        ``most_clips`` is the largest share of the batch that a rank has: all ranks halve to the same size.
        """
        assert self.micro_batch_size is not None
        size = min(self.micro_batch_size, most_clips)
        self._tried.append(self._describe(most_clips))
        if size > 1:
            self.micro_batch_size = math.ceil(size / 2)
        elif not self.model.activation_checkpointing:
            self._turn_on_checkpointing()
        else:
            raise TrainingError(describe_no_fit(self._tried, failure, self.model.parameters(), features))

    def _turn_on_checkpointing(self) -> None:
        """Recompute activations from now on."""
        self.model.enable_activation_checkpointing()
        self.activation_checkpointing = True
        allocator.release_blocks()

    def _describe(self, num_clips: int) -> str:
        """Return the micro-batch size and activation checkpointing in words."""
        assert self.micro_batch_size is not None
        return describe_size(self.micro_batch_size, num_clips, self.model.activation_checkpointing)
