"""Dropout with a mask per clip, whatever the micro-batch; and patchout, with a mask per step.

``torch.nn.Dropout`` draws one stream of random numbers: with other micro-batches every mask changes, so a step that is
redone in smaller micro-batches would be another step. Here the mask of a clip follows from three numbers: the seed of
the optimiser's step, the layer, and the clip's place in the batch. The gradient is then that of the whole batch for any
micro-batch, and a checkpointed layer draws its mask again without saved state.

On a GPU, where a draw takes 30 us however small it is, neighbouring clips of the batch share one: the masks of a group
are drawn as a whole, and a micro-batch takes those of its clips.

In: float (batch, ...). Out: the same shape, each element kept with probability ``1 - p`` and scaled by its inverse.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

# Elements of the masks that are drawn at once; a draw covers one clip at least.
ELEMENTS_PER_DRAW = {"cpu": 1, "cuda": 2**21}


class ClipDropout(nn.Module):
    """Zero elements with probability ``p`` in training, by masks that follow from step, layer and clip.

    Parameters
    ----------
    p : float
        Probability of an element to be zeroed, in [0, 1).
    layer : int
        Number of this layer in its model: no two layers share masks.

    Attributes
    ----------
    seed : int
        Seed of the step, set by ``place_micro_batch``.
    first_clip : int
        Place of the micro-batch's first clip in the optimiser's batch.
    num_draws : int
        Of the last pass.
    generators : list of torch.Generator
        Those of the draws of a pass, which another one seeds, while a step is captured (``training.captured_step``).
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.seed = 0
        self.first_clip = 0
        self.num_draws = 0
        self.generators: list[torch.Generator] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (batch, ...), with dropout in training."""
        if not self.training or self.p == 0.0:
            return x
        return x * self._mask(x) * (1.0 / (1.0 - self.p))

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mask of ``x``, bool: one byte per element, a quarter of what ``torch.nn.Dropout`` keeps."""
        group = max(ELEMENTS_PER_DRAW.get(x.device.type, 1) // math.prod(x.shape[1:]), 1)
        first, last = self.first_clip // group, (self.first_clip + len(x) - 1) // group
        self.num_draws = last - first + 1
        masks = torch.empty((self.num_draws * group, *x.shape[1:]), dtype=torch.bool, device=x.device)
        own = None if self.generators else torch.Generator(device=x.device)
        for number, mask in enumerate(masks.split(group), first):
            seeded = self.generators[number - first] if own is None else own.manual_seed(self.seed_of(number))
            mask.bernoulli_(1.0 - self.p, generator=seeded)
        start = self.first_clip - first * group
        return masks[start : start + len(x)]

    def seed_of(self, number: int) -> int:
        """Return the seed of a draw of this step, counted from that of the batch's first clip."""
        digest = hashlib.blake2b(f"{self.seed}/{self.layer}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1  # manual_seed takes 63 bits

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"p={self.p}, layer={self.layer}"


class Patchout(nn.Module):
    """Leave out whole rows and columns of a grid of patches in training, so that fewer tokens are computed.

    PaSST's structured patchout (Koutini et al. 2022, https://arxiv.org/abs/2110.05069). All clips of a batch lose the
    same patches, so their tokens need not be computed; the step's seed decides which, whatever the micro-batch.

    Parameters
    ----------
    share : float
        Share of the rows, and of the columns, that is left out (rounded; one always stays), in [0, 1).
    grid : (int, int)
        Patches along (frequency, time), time running fastest.

    Attributes
    ----------
    seed : int
        Seed of the step, set by ``place_micro_batch``.
    held : torch.Tensor or None
        The numbers to use instead of new ones, while a step is captured (``training.captured_step``).
    """

    def __init__(self, share: float, grid: Sequence[int]) -> None:
        super().__init__()
        self.share = share
        self.grid = tuple(grid)
        self.seed = 0
        self.held: torch.Tensor | None = None

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (batch, num_kept, width) of ``patches`` (batch, num_patches, width): all of them outside training."""
        if not self.training or self.share == 0.0:
            return patches
        return patches.index_select(1, self._numbers(patches.device))

    def _numbers(self, device: torch.device) -> torch.Tensor:
        """Return the numbers of the patches that stay, on the device."""
        return self.kept().to(device) if self.held is None else self.held

    def kept(self) -> torch.Tensor:
        """Return the numbers of the patches that stay in this step, int64 (num_kept,), ascending; always as many."""
        digest = hashlib.blake2b(f"{self.seed}/patchout".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        rows, columns = (
            torch.randperm(length, generator=generator)[: max(length - round(self.share * length), 1)].sort().values
            for length in self.grid
        )
        return (rows[:, None] * self.grid[1] + columns).flatten()

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"share={self.share}, grid={self.grid}"


def random_layers(model: nn.Module) -> list[ClipDropout | Patchout]:
    """Return the dropout and patchout of ``model`` that have an effect."""
    return [
        module
        for module in model.modules()
        if (isinstance(module, ClipDropout) and module.p) or (isinstance(module, Patchout) and module.share)
    ]


def keep_uncompiled(model: nn.Module) -> None:
    """Keep ``torch.compile``, which is to compile ``model``, out of the draws: each step has another seed.

    Not a decorator of the class, as ``torch.compiler.disable`` imports for 1 s what only a compiled model needs.
    """
    for layer in random_layers(model):
        name = "_mask" if isinstance(layer, ClipDropout) else "_numbers"
        setattr(layer, name, torch.compiler.disable(getattr(layer, name)))


def place_micro_batch(layers: Iterable[nn.Module], seed: int, first_clip: int) -> None:
    """Set the seed of the step, and the micro-batch's place in the batch, in dropout and patchout layers."""
    for module in layers:
        if isinstance(module, (ClipDropout, Patchout)):
            module.seed = seed
        if isinstance(module, ClipDropout):
            module.first_clip = first_clip


def replace_dropout(model: nn.Module) -> None:
    """Replace every ``torch.nn.Dropout`` inside ``model`` by a ``ClipDropout`` with the same probability."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout)
    ]
    for layer, (parent, name, child) in enumerate(places):
        setattr(parent, name, ClipDropout(child.p, layer))
