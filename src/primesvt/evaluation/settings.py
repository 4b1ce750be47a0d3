"""Find settings of an official checkpoint that its tensors do not tell, by trying them on data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from primesvt._progress import Progress
from primesvt.checkpoint.load import Data, splits_for
from primesvt.data import Splits
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup, resolve_device
from primesvt.evaluation.confidence import at_chance, wilson_interval
from primesvt.evaluation.evaluator import outcomes
from primesvt.models import CheckpointReport, SpikingViT, build_model, model_entry
from primesvt.models.config import ModelConfig
from primesvt.models.official.recognise import guesses

__all__ = ["find_settings", "settings_note", "tried_on"]

Config = ModelConfig
Right = npt.NDArray[np.bool_]

SHARE, MOST = 0.1, 1000  # of the selection images that settings are tried on
FEWEST = 30  # images on which an accuracy at chance says anything
ROUNDS = ((32, 8), (128, 3))  # images of a first look, and how many settings stay after it
SIDES = (2, 16)  # places along a side of what reaches the last stage
HEADS = (1, 2, 3, 4, 6, 8, 12, 16)
USUAL: Mapping[str, tuple[Any, ...]] = {
    "time_steps": (1, 2, 4, 6, 8),
    "num_heads": HEADS,
    "dvs_mode": (False, True),
    "proj_neuron": ("mixed", "per_image"),
    "spike_levels": (4, 8),
    "tau": (2.0, 1.5),
    "attn_scale": (0.125, 0.25),
}
FEW_STEPS = (1, 2)
TOGETHER = ("pooling_stat", "strides", "time_steps")


def find_settings(
    model: SpikingViT,
    data: Data,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> SpikingViT:
    """Try the usual values of settings that a checkpoint does not tell, and take the best.

    Tried on the calibration images and a tenth of the selection images, never on the test set. A
    value that was assumed stays, unless another one is clearly better. ``model.loaded`` of the
    result says what was found; a model without guessed settings is returned as it is.

    Args:
        model: as ``primesvt.load`` returns it; not changed.
        data: as ``primesvt.prune`` takes them.
        seed: draws the images.
        batch_size: images per forward pass.
        device: where to compute; where the model is, when not given.
        processes: those that measure together.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: with all values tried, no more images are right than by guessing.

    Example:
        >>> from primesvt.models import create_model, from_official, to_official
        >>> given = create_model("sdt_v2_digits", pretrained=True)
        >>> model = find_settings(from_official(to_official(given)), "digits")
        >>> model.config.strides == given.config.strides, model.loaded.found["time_steps"]
        (True, 2)
    """
    if not isinstance(model, SpikingViT) or not _open(model):
        return model
    splits = data if isinstance(data, Splits) else splits_for(model, data, seed=seed)
    _, chosen = tried_on(splits, seed=seed)
    trial = _Trial(
        model,
        ConcatDataset([splits.calibration, chosen]),
        batch_size=batch_size,
        device=resolve_device(device, model),
        processes=processes,
        progress=progress or (lambda *_: None),
    )
    return trial.run()


def tried_on(splits: Splits, *, seed: int) -> tuple[Dataset[Any], Dataset[Any]]:
    """The selection images in two parts: those that settings leave alone, and those for trying."""
    size = len(cast(Sized, splits.selection))
    count = min(MOST, max(1, round(SHARE * size)), size - 1)
    order = np.random.default_rng([seed, size]).permutation(size)
    rest, chosen = np.sort(order[count:]), np.sort(order[:count])
    return Subset(splits.selection, rest.tolist()), Subset(splits.selection, chosen.tolist())


def settings_note(model: nn.Module) -> tuple[str, ...]:
    """What trying settings has found for a model, as a sentence for the result; none for others."""
    loaded = getattr(model, "loaded", None)
    return (loaded.tried,) if isinstance(loaded, CheckpointReport) and loaded.tried else ()


def _open(model: SpikingViT) -> tuple[str, ...]:
    """The guessed settings of a model for which there are values to try."""
    return () if model.loaded is None else guesses(model.loaded)


class _Trial:
    """Compares settings of one checkpoint: each makes a network, measured on the same images."""

    def __init__(
        self,
        model: SpikingViT,
        images: Dataset[Any],
        *,
        batch_size: int,
        device: torch.device,
        processes: ProcessGroup,
        progress: Progress,
    ) -> None:
        self.model, self.images, self.total = model, images, len(cast(Sized, images))
        self.assumed = model.config
        self.state = model.state_dict()
        self.outcomes: dict[Config, Right] = {}
        self.progress, self.looks = progress, 0
        self.measure: Callable[[nn.Module, Dataset[Any]], Right] = lambda network, part: outcomes(
            network, part, batch_size=batch_size, device=device, processes=processes
        )
        sample = cast(Tensor, images[0][0])
        self.side, self.frames = min(sample.shape[-2:]), sample.ndim == 4

    def run(self) -> SpikingViT:
        """Find the best settings; the network with them, and a report that says so."""
        names = [name for name in _open(self.model) if not (self.frames and name == "time_steps")]
        if self._as_published() or not names:
            best = self.assumed
        else:
            best = self._simplest(self._best_of(names), names)
        self._check(best, names)
        network = self._network(best)
        network.loaded = self._report(best, names)
        network.provenance = self.model.provenance
        return network.eval()

    def _as_published(self) -> bool:
        """Whether a published variant's weights are as good as published with its own settings."""
        loaded = self.model.loaded
        assert loaded is not None
        published = model_entry(loaded.nearest).published
        if not loaded.exact or published is None or published.top1 is None:
            return False
        right = self._right(self.assumed, 128)
        return wilson_interval(int(right.sum()), len(right))[1] >= published.top1 / 100

    def _best_of(self, names: Sequence[str]) -> Config:
        """The settings with most images right: those of the stem and time together, then each."""
        together = [name for name in TOGETHER if name in names]
        grid = self._grid(self.assumed, together)
        if "time_steps" in names:  # few of them tell a right stem from a wrong one, at less cost
            few = (*FEW_STEPS, self.assumed.time_steps)
            grid = [config for config in grid if config.time_steps in few]
        best = self._best(self.assumed, grid)
        for name in names:
            if name not in together or name == "time_steps":
                best = self._best(best, self._grid(best, [name]))
        return best

    def _grid(self, config: Config, names: Sequence[str]) -> list[Config]:
        """All combinations of the usual values of some settings that make a network."""
        found = []
        for values in itertools.product(*(self._values(name) for name in names)):
            try:
                found.append(dataclasses.replace(config, **dict(zip(names, values, strict=True))))
            except ValueError:  # such as heads that do not divide the width
                continue
        return found

    def _values(self, name: str) -> Iterator[Any]:
        own = getattr(self.assumed, name)
        yield own
        if name == "pooling_stat":
            flags = map("".join, itertools.product("01", repeat=len(own)))
            yield from (each for each in flags if self._fits(2 ** each.count("1")))
        elif name == "strides":
            every = itertools.product((1, 2), repeat=len(own))
            yield from (each for each in every if self._fits(math.prod(each)))
        elif not isinstance(own, tuple):
            yield from USUAL[name]

    def _fits(self, shrunk: int) -> bool:
        return SIDES[0] <= self.side / shrunk <= SIDES[1]

    def _best(self, first: Config, others: Sequence[Config]) -> Config:
        """The best of some settings, by looks at more and more images; the first of equals."""
        left = list(dict.fromkeys([first, *others]))
        for images, kept in (*ROUNDS, (self.total, 1)):
            scores = {}
            for config in left:
                right = self._tried(config, min(images, self.total))
                if right is not None:
                    scores[config] = int(right.sum())
            left = sorted(scores, key=lambda each: -scores[each])[:kept]
        return left[0]

    def _tried(self, config: Config, count: int) -> Right | None:
        """Which of the first images are right; ``None`` where such a network cannot run."""
        self.looks += 1
        self.progress("trying settings", self.looks, 0)
        try:
            return self._right(config, count)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # shapes that do not fit the images
            if config == self.assumed:
                raise
            return None

    def _right(self, config: Config, count: int) -> Right:
        known = self.outcomes.get(config, np.zeros(0, dtype=np.bool_))
        count = min(count, self.total)
        if len(known) < count:
            part: Dataset[Any] = Subset(self.images, range(len(known), count))
            found = self.measure(self._network(config), part)
            known = self.outcomes[config] = np.concatenate([known, found])
        return known[:count]

    def _network(self, config: Config) -> SpikingViT:
        """A network that shares the tensors of the model."""
        with torch.device("meta"):
            network = build_model(config)
        network.load_state_dict(self.state, assign=True)
        return network

    def _simplest(self, best: Config, names: Sequence[str]) -> Config:
        """Put assumed values back, as far as no clearly smaller share of the images is right."""
        for name in names:
            back = dataclasses.replace(best, **{name: getattr(self.assumed, name)})
            if back == best:
                continue
            right = self._tried(back, self.total)
            if right is not None and not _clearly_worse(right, self._right(best, self.total)):
                best = back
        return best

    def _check(self, best: Config, names: Sequence[str]) -> None:
        """Raise ``ValueError`` where no setting is better than guessing."""
        if not names or self.total < FEWEST:
            return
        right = self._right(best, self.total)
        if at_chance(int(right.sum()), len(right), best.num_classes):
            loaded = self.model.loaded
            assert loaded is not None
            raise ValueError(
                f"{loaded.source}: whatever is tried for what its tensors do not tell"
                f" ({', '.join(names)}), {right.mean():.1%} of {len(right):,} images are right at"
                f" best, and guessing gives {1 / best.num_classes:.1%}; give the true values with"
                " --override NAME=VALUE (in Python: load(path, name=value)), or look for another"
                " order of the classes, another normalisation, or weights of a training that failed"
            )

    def _report(self, best: Config, names: Sequence[str]) -> CheckpointReport:
        loaded = self.model.loaded
        assert loaded is not None
        found = {name: getattr(best, name) for name in names}
        apart = {k: v for k, v in found.items() if v != getattr(self.assumed, k)}
        right = self._right(best, self.total)
        place = f"on {len(right):,} calibration and selection images"
        if apart:
            before = self._right(self.assumed, self.total)
            were = ", ".join(f"{name}={_text(getattr(self.assumed, name))}" for name in apart)
            tried = (
                f"Settings were found {place}:"
                f" {', '.join(f'{k}={_text(v)}' for k, v in apart.items())} gets"
                f" {right.mean():.1%} right, the assumed {were} {before.mean():.1%}."
            )
        else:
            tried = (
                f"The assumed {', '.join(names)} were tried {place}: {right.mean():.1%} are right,"
                " and no other usual value is clearly better."
            )
        assumed = {name: value for name, value in loaded.assumed.items() if name not in found}
        return dataclasses.replace(loaded, assumed=assumed, found=found, tried=tried)


def _clearly_worse(one: Right, other: Right) -> bool:
    """Whether fewer are right, beyond what 95 % of equally good networks differ (McNemar)."""
    lost, gained = int((other & ~one).sum()), int((one & ~other).sum())
    return lost - gained > 1.645 * math.sqrt(lost + gained)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
