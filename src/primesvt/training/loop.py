"""The one training loop: AdamW, warm-up and cosine; it can go on from any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from typing_extensions import TypedDict

from primesvt._files import validated
from primesvt.data import ImageSet
from primesvt.distributed import ProcessGroup
from primesvt.evaluation.evaluator import Progress
from primesvt.models import reset
from primesvt.models.state_dict import give_tensors, tensors_of
from primesvt.training.config import TrainingConfig
from primesvt.training.snapshot import Snapshot, named, random_states, restore_random_states

__all__ = [
    "BestWeights",
    "Loss",
    "ResumableBatchSampler",
    "TrainingBatches",
    "TrainingLoop",
    "computes_in_bf16",
    "learning_rate_factor",
]


class ResumableBatchSampler(Sampler[list[int]]):
    """The batches of an epoch in random order, from any step on; incomplete ones are left out.

    Args:
        images: how many there are.
        batch_size: images of a step, over all processes.
        generator: draws the permutations.
        rank: the process whose share of each batch is wanted.
        size: how many processes there are.

    Example:
        >>> order = ResumableBatchSampler(5, 2, torch.Generator().manual_seed(0))
        >>> _ = order.begin()
        >>> first = list(order)
        >>> order.skip(1)
        >>> len(first), list(order) == first[1:]
        (2, True)
    """

    def __init__(
        self, images: int, batch_size: int, generator: Generator, *, rank: int = 0, size: int = 1
    ) -> None:
        self.images, self.generator = images, generator
        self.share = max(1, min(batch_size, images) // size)
        self.rank, self.batch_size = rank, self.share * size
        self.steps = images // self.batch_size
        self.state = generator.get_state()
        self._permutation = torch.arange(images)
        self._first = 0

    def begin(self) -> int:
        """Draw the order of an epoch; returns a seed for the processes that load it."""
        self.state = self.generator.get_state()
        seed = torch.empty((), dtype=torch.int64).random_(generator=self.generator).item()
        self._permutation = torch.randperm(self.images, generator=self.generator)
        self._first = 0
        return int(seed)

    def again(self, state: Tensor) -> int:
        """Draw an epoch's order again from the generator state that it was drawn from."""
        self.generator.set_state(state)
        return self.begin()

    def skip(self, steps: int) -> None:
        """Begin the epoch after its first ``steps`` batches."""
        self._first = steps

    def end(self) -> None:
        """End the epoch: advance the generator as torch's sampler does."""
        # torch's RandomSampler draws once more here: with it, trainings on record repeat bitwise.
        torch.randperm(self.images, generator=self.generator)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first, self.steps):
            begin = step * self.batch_size + self.rank * self.share
            yield self._permutation[begin : begin + self.share].tolist()

    def __len__(self) -> int:
        return self.steps - self._first


class BestWeights:
    """The accuracy after every epoch, and the weights of the best epoch; of equals, the later.

    Args:
        first: the number of the first candidate: 0 where weights are judged before any training.

    Example:
        >>> best = BestWeights()
        >>> for accuracy in (0.5, 0.7, 0.6):
        ...     best.offer(torch.nn.Linear(1, 1), accuracy)
        >>> best.epoch
        2
    """

    def __init__(self, *, first: int = 1) -> None:
        self.first, self.epoch = first, first
        self.accuracies: list[float] = []
        self.state: dict[str, Tensor] = {}

    def offer(self, model: nn.Module, accuracy: float) -> None:
        """Record an epoch's accuracy, and keep its weights if none before were better."""
        self.accuracies.append(accuracy)
        if accuracy >= max(self.accuracies):
            self.epoch = self.first + len(self.accuracies) - 1
            self.state = tensors_of(model)

    def give(self, model: nn.Module) -> None:
        """Load the best weights into a model."""
        give_tensors(model, self.state)

    def snapshot(self) -> Snapshot:
        """The accuracies so far and the best weights, with which a training is resumed."""
        facts = {"best": self.epoch, "accuracies": list(self.accuracies)}
        return Snapshot(tensors=named("best", self.state), facts=facts)

    def restore(self, snapshot: Snapshot, device: torch.device) -> None:
        """Resume from a snapshot."""
        facts = validated(_BestFacts, snapshot.facts)
        self.epoch, self.accuracies = facts["best"], list(facts["accuracies"])
        self.state = {k: v.to(device) for k, v in snapshot.part("best").items()}
        if self.state and self.state.keys() != snapshot.part("model").keys():
            raise ValueError("tensors of the best weights are missing")


class _BestFacts(TypedDict):
    best: int
    accuracies: list[float]


class _LoopFacts(TypedDict):
    step: int
    processes: int
    total: float
    losses: list[float]


IN_MEMORY = 2**31  # bytes of prepared training images that are kept as one tensor
ESTIMATED_ON = 1024  # images for the batch-norm statistics of averaged weights

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(what the model gives in training mode, images, targets) -> the loss of a batch.

Targets are labels ``[B]``, or shares of all classes ``[B, classes]`` where images are mixed."""


class TrainingBatches:
    """The batches of a training, changed at random, in an order that can be taken up at any step.

    Args:
        images: pairs of a tensor and a label.
        learning: the batch size, the augmentation and the seed.
        processes: those that share every batch.
        fill: what moves in where an augmentation moves an image, ``[C]`` or ``[1]``.
        classes: how many there are.
        workers: processes that decode images, where those do not fit into memory.
    """

    def __init__(
        self,
        images: Dataset[Any],
        learning: TrainingConfig,
        processes: ProcessGroup,
        *,
        fill: Tensor,
        classes: int,
        workers: int = 0,
    ) -> None:
        self.learning, self.processes = learning, processes
        self._images, self._fill = images, fill.to(processes.device)
        self._classes = classes
        self.generator = torch.Generator().manual_seed(learning.seed)
        self.order = ResumableBatchSampler(
            len(cast(Sized, images)),
            learning.batch_size,
            self.generator,
            rank=processes.rank,
            size=processes.size,
        )
        self._loading = torch.Generator()
        self._loader = _loader(images, self.order, self._loading, workers, processes.device)

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return self.order.steps

    def begin(self) -> None:
        """Draw the order of an epoch."""
        self._loading.manual_seed(self.order.begin())

    def resume(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up an epoch after some of its steps, with the states that a snapshot kept."""
        if step:
            self._loading.manual_seed(self.order.again(tensors["order"]))
            self.order.skip(step)
        self.generator.set_state(tensors["generator"])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and targets of the steps that are left of an epoch, on the device."""
        place = self.processes
        for images, labels in self._loader:
            changed = self.learning.augmentation(
                images.to(place.device),
                self._fill,
                self.generator,
                rank=place.rank,
                size=place.size,
            )
            yield self._mixed(changed, labels, self.generator)

    def some(self, count: int, number: int) -> Iterator[Tensor]:
        """About so many images, drawn and changed by the number alone; in whole batches."""
        draw = torch.Generator().manual_seed(self.learning.seed + number)
        size = self.order.batch_size
        chosen = torch.randperm(self.order.images, generator=draw)[: max(count, size)]
        loader: Iterable[tuple[Tensor, Tensor]]
        if isinstance(self._loader, _Prepared):
            loader = map(self._loader.batch, chosen[: len(chosen) // size * size].split(size))
        else:
            loader = DataLoader(Subset(self._images, chosen.tolist()), size, drop_last=True)
        for images, labels in loader:
            changed = self.learning.augmentation(images.to(self.processes.device), self._fill, draw)
            yield self._mixed(changed, labels, draw)[0]

    def _mixed(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """A batch on the device, its images mixed where the augmentation says so."""
        labels = labels.to(self.processes.device)
        if not self.learning.augmentation.mixes:
            return images, labels
        return self.learning.augmentation.mix(images, labels, self._classes, generator)


class TrainingLoop:
    """Weights, optimizer, schedule, order of images and random states of one training.

    Args:
        model: trained in place, on the device of ``processes``.
        images: pairs of a tensor and a label.
        learning: how.
        loss: of a batch.
        processes: those that share every batch.
        fill: what moves in where an augmentation moves an image, ``[C]`` or ``[1]``.
        classes: how many there are.
        workers: processes that decode images, where those do not fit into memory.
        bf16: compute under bfloat16 autocast.
        stage: what to tell of the progress.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Dataset[Any],
        learning: TrainingConfig,
        *,
        loss: Loss,
        processes: ProcessGroup,
        fill: Tensor,
        classes: int,
        workers: int = 0,
        bf16: bool = False,
        stage: str = "training",
    ) -> None:
        self.model, self.learning, self.loss, self.processes = model, learning, loss, processes
        self.bf16, self.stage = bf16, stage
        self.batches = TrainingBatches(
            images, learning, processes, fill=fill, classes=classes, workers=workers
        )
        if processes.rank:  # random depths and the like are drawn by each process on its own
            torch.manual_seed(learning.seed + processes.rank)
        self.optimizer = _optimizer(model, learning)
        # A copy that follows the model; the first step sets it to the model's weights.
        follow = get_ema_multi_avg_fn(learning.ema) if learning.ema else None
        self.average = AveragedModel(model, multi_avg_fn=follow) if follow else None
        wrapped = processes.wrap(model)
        self.network: Callable[..., Any] = wrapped
        if learning.compile:
            self.network = _compiled(wrapped, processes)
        self.step = 0  # of this epoch
        self.total = 0.0  # of its losses
        # A GPU computes on while the loss of the step before is read.
        self._unread: list[tuple[int, Tensor]] = []
        self._ahead = int(processes.device.type == "cuda")
        self.losses: list[float] = []

    @property
    def result(self) -> nn.Module:
        """The network to evaluate: the moving average of the weights if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.learning.epochs * self.batches.steps

    @property
    def done(self) -> int:
        """Number of steps that are done."""
        return len(self.losses) * self.batches.steps + self.step

    def epoch(self, progress: Progress, after_step: Callable[[], None] = lambda: None) -> None:
        """Train one pass over the images, or the rest of it when resumed; appends its mean loss."""
        self.model.train()
        if not self.step:
            self.batches.begin()
        for images, targets in self.batches:
            self._take(images, targets)
            progress(self.stage, self.done, self.steps)
            after_step()
        self.batches.order.end()
        self.processes.broadcast_state(self.model)
        if self.average is not None:
            self._estimate_statistics(self.average.module)
            self.processes.broadcast_state(self.average)
        self._read_losses()
        self.losses.append(self.total / self.batches.steps)
        self.step, self.total = 0, 0.0

    def _estimate_statistics(self, network: nn.Module) -> None:
        """Give averaged weights the batch-norm statistics of their own activations.

        Averages are shorter than the weights they average, so with the trained network's
        statistics few neurons fire. Images are drawn and changed by the epoch's number alone.
        """

        def fresh() -> Iterator[Tensor]:
            for images in self.batches.some(ESTIMATED_ON, len(self.losses)):
                reset(network)
                yield images

        network.eval()
        update_bn(fresh(), network)
        reset(network)

    def _take(self, images: Tensor, targets: Tensor) -> None:
        """Train one step on a batch."""
        place = self.processes
        reset(self.model)  # a network of the user's may not do it itself
        with torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.network(images), images, targets)
        self._unread.append((self.done + 1, place.mean(loss)))
        self._read_losses(self._ahead)
        self._update(loss)
        self.step += 1

    def _read_losses(self, ahead: int = 0) -> None:
        """Check and add up the losses of all steps, but for the last few that still compute."""
        while len(self._unread) > ahead:
            step, loss = self._unread.pop(0)
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss is {value} in step {step}: lower learning_rate "
                    f"(now {self.learning.learning_rate}) or lengthen warmup_epochs"
                )
            self.total += value

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.backward(loss)
        reset(self.model)
        if self.learning.gradient_clip is not None:
            self.processes.clip(self.model, self.learning.gradient_clip)
        warmup = round(self.learning.warmup_epochs * self.batches.steps)
        factor = learning_rate_factor(self.done, warmup, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning.learning_rate * factor
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def snapshot(self) -> Snapshot:
        """The state of the training, with which it can be resumed exactly."""
        self._read_losses()
        tensors = {
            "order": self.batches.order.state,
            "generator": self.batches.generator.get_state(),
            **named("model", tensors_of(self.model)),
            **named("random", random_states(self.processes)),
        }
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= named(f"optimizer.{number}", state)
        if self.average is not None:
            tensors |= named("average", tensors_of(self.average))
        facts = {"step": self.step, "total": self.total, "losses": list(self.losses)}
        return Snapshot(tensors=tensors, facts={**facts, "processes": self.processes.size})

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot."""
        facts = validated(_LoopFacts, snapshot.facts)
        self.step, self.total = facts["step"], facts["total"]
        self.losses = list(facts["losses"])
        if not 0 <= self.step <= self.batches.steps or self.done > self.steps:
            raise ValueError(f"{self.done} steps of {self.steps} are done")
        give_tensors(self.model, snapshot.part("model"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in snapshot.part("optimizer").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        if len({frozenset(moments) for moments in state.values()}) > 1:
            raise ValueError("moments of the optimizer are missing")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        if self.average is not None:
            give_tensors(self.average, snapshot.part("average"))
        random = snapshot.part("random")
        same = facts["processes"] == self.processes.size
        if same and f"cpu.{self.processes.rank}" not in random:
            raise ValueError(f"the random state of process {self.processes.rank} is missing")
        self.batches.resume(snapshot.tensors, self.step)
        restore_random_states(random, self.processes)


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero.

    Loshchilov and Hutter, "SGDR", ICLR 2017, cosine annealing with one period.

    Example:
        >>> [round(learning_rate_factor(step, 2, 6), 2) for step in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether bfloat16 autocast is asked for, or safe: on GPUs that have it.

    Example:
        >>> [computes_in_bf16(name, torch.device("cpu")) for name in ("auto", "bf16")]
        [False, True]
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _loader(
    images: Dataset[Any],
    order: ResumableBatchSampler,
    generator: torch.Generator,
    workers: int,
    device: torch.device,
) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of an epoch, out of one tensor where all images are ours and fit into memory."""
    if isinstance(images, ImageSet) and len(images):
        first, _ = images[0]
        size = first.nbytes * len(images)
        if size <= IN_MEMORY:
            return _Prepared(images, order, _with_room(device, size))
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0,
    )


def _with_room(device: torch.device, size: int) -> torch.device:
    """The device, or the CPU where images would take more than a quarter of a GPU's free memory."""
    roomy = device.type != "cuda" or 4 * size <= torch.cuda.mem_get_info(device)[0]
    return device if roomy else torch.device("cpu")


class _Prepared:
    """Batches of images that are decoded once, when the first is asked, and kept on a device."""

    def __init__(
        self, images: ImageSet, order: ResumableBatchSampler, device: torch.device
    ) -> None:
        self._images, self._order, self._device = images, order, device
        self._labels = torch.from_numpy(images.labels).to(device)
        self._all: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._order:
            yield self.batch(torch.tensor(chosen))

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels by their numbers."""
        if self._all is None:
            images = torch.stack([image for image, _ in self._images.once()])
            self._all = images.to(self._device)
        chosen = chosen.to(self._device)
        return self._all[chosen], self._labels[chosen]


def _compiled(network: nn.Module, processes: ProcessGroup) -> Callable[..., Any]:
    """Compile a network as a new process would.

    PyTorch keeps eight compiled versions of a ``forward``: of a class's ninth network in a process
    it would compile nothing, and which kernels another one gets would depend on those before it.
    """
    torch.compiler.reset()
    # Small networks leave a GPU waiting for the next kernel: there, all of a pass start as one.
    alone = processes.device.type == "cuda" and processes.size == 1
    return torch.compile(network, mode="reduce-overhead" if alone else None)


def _optimizer(model: nn.Module, learning: TrainingConfig) -> torch.optim.AdamW:
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": learning.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # On a GPU one fused kernel updates all weights; the CPU's results on record stay as they are.
    fused = True if weights and weights[0].is_cuda else None
    return torch.optim.AdamW(groups, lr=learning.learning_rate, fused=fused)
