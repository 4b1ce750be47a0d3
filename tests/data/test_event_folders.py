"""Event data sets in the folders that SpikingJelly makes: its frames, its labels, its splits."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primesvt.data import DataError, ImageSet, check_classes, load_data
from primesvt.data.config import events
from primesvt.data.event_folders import EVENT_DATASETS, integrate

from .event_samples import every_sample, frames, refused

GESTURE = EVENT_DATASETS["dvs128gesture"]


def raw_events(root: Path, *, per_class: int = 3, classes: int = 11, parts: Any = None) -> Path:
    """A folder as SpikingJelly leaves it after it has read the archives of DVS128 Gesture."""
    rng = np.random.default_rng(0)
    for part in ("train", "test") if parts is None else parts:
        for label in range(classes):
            folder = root / "events_np" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(per_class):
                count = int(rng.integers(20, 60))
                np.savez(
                    folder / f"user{number:02}.npz",
                    t=np.sort(rng.integers(0, 10_000, count)),
                    x=rng.integers(0, 128, count).astype(np.uint16),
                    y=rng.integers(0, 128, count).astype(np.uint16),
                    p=rng.integers(0, 2, count),
                )
    return root


@pytest.fixture
def spikingjelly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SpikingJelly's module of the data set, without the audio library that it does not need."""
    for name in [each for each in sys.modules if each.startswith("spikingjelly.datasets")]:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("spikingjelly.datasets")
    package.__path__ = [str(Path(importlib.import_module("spikingjelly").__path__[0], "datasets"))]
    monkeypatch.setitem(sys.modules, "spikingjelly.datasets", package)
    yield importlib.import_module("spikingjelly.datasets.dvs128_gesture")
    for name in [each for each in sys.modules if each.startswith("spikingjelly.datasets.")]:
        del sys.modules[name]


class TestSpikingJelly:
    def test_same_frames_and_labels_as_spikingjelly(
        self, tmp_path: Path, spikingjelly: Any
    ) -> None:
        raw_events(tmp_path)
        counted = load_data(f"dvs128gesture:{tmp_path}", time_steps=4, held_out=True)
        assert not list(tmp_path.glob("frames_number_*"))  # nothing is written
        made = {
            part: spikingjelly.DVS128Gesture(
                str(tmp_path), train=part == "train", data_type="frame", frames_number=4,
                split_by="number",
            )
            for part in ("train", "test")
        }  # fmt: skip
        read = load_data(f"DVS128-Gesture:{tmp_path}", time_steps=4, held_out=True)
        assert read.name == "DVS128Gesture frames_number_4_split_by_number"
        for splits in (counted, read):
            for part, theirs in ((splits.test, made["test"]), (splits.train, made["train"])):
                assert isinstance(part, ImageSet)
                for k, place in enumerate(part.indices):
                    ours, label = part[k]
                    assert np.array_equal(ours.numpy(), theirs[place][0])
                    assert label == theirs[place][1]
        assert len(read.test) == 33 and len(read.train) == 27  # type: ignore[arg-type]

    def test_split_within_classes_is_spikingjellys(self, tmp_path: Path, spikingjelly: Any) -> None:
        utils = importlib.import_module("spikingjelly.datasets.utils")
        raw_events(tmp_path, classes=10, per_class=11, parts=("",))
        splits = load_data(f"cifar10dvs:{tmp_path}", time_steps=2)
        labels = np.repeat(np.arange(10), 11)
        train, test = utils.split_to_train_test_set(0.9, [(0, y) for y in labels], 10)
        assert isinstance(splits.train, ImageSet)
        assert splits.train.indices.tolist() == sorted(train.indices)
        held = [part.indices.tolist() for part in (splits.selection, splits.test)]  # type: ignore[union-attr]
        assert sorted(held[0] + held[1]) == sorted(test.indices)
        assert splits.form.endswith("the last tenth of each class is for the test")

    @pytest.mark.parametrize("count", [0, 3, 4, 9, 50])
    def test_events_are_counted_as_spikingjelly_does(self, spikingjelly: Any, count: int) -> None:
        utils = importlib.import_module("spikingjelly.datasets.utils")
        rng = np.random.default_rng(count)
        some = {key: rng.integers(0, 6, count) for key in ("t", "x", "y", "p")}
        theirs = utils.integrate_events_by_fixed_frames_number(some, "number", 4, 6, 7)
        assert np.array_equal(integrate(some, 4, (6, 7), place="a"), theirs)

    def test_labels_follow_names_as_text(self, tmp_path: Path) -> None:
        splits = load_data(f"dvs128gesture:{raw_events(tmp_path)}", time_steps=2)
        assert isinstance(splits.test, ImageSet) and splits.test.source.classes is not None
        assert splits.test.source.classes[:4] == ("0", "1", "10", "2")
        with pytest.raises(DataError, match="11 classes, but the model predicts 100"):
            check_classes(splits, 100)

    def processed(self, root: Path, *names: str) -> Path:
        for name in names:
            for label in range(11):
                (root / name / "test" / str(label)).mkdir(parents=True)
                steps = int(name.split("_")[2])
                sample = root / name / "test" / str(label) / "a.npz"
                np.savez(sample, frames=frames((steps, 2, 8, 8)))
        return root

    def test_which_frames_are_taken(self, tmp_path: Path) -> None:
        few, many, timed = (
            "frames_number_4_split_by_number",
            "frames_number_16_split_by_number",
            "frames_number_16_split_by_time",
        )
        root = self.processed(tmp_path, few)
        assert GESTURE.folder(root, 10) == root / few  # the only ones there are
        self.processed(tmp_path, many)
        assert GESTURE.folder(root, 16) == root / many
        assert few in refused(f"dvs128gesture:{root}", time_steps=10)
        self.processed(tmp_path, timed)
        assert "give one of these folders itself" in refused(f"dvs128gesture:{root}", time_steps=16)
        splits = load_data(f"dvs128gesture:{root / timed}", time_steps=4)
        assert splits.form == "16 time steps of 2x8x8, not the model's 4"

    def test_nothing_is_downloaded(self, tmp_path: Path) -> None:
        said = refused(f"cifar10dvs:{tmp_path}", time_steps=10)
        assert "'events_np'" in said and "download" in said and "figshare" in said
        assert not list(tmp_path.iterdir())
        assert "there is no folder" in refused("nmnist:nowhere")
        assert "no folder is given" in refused("n-mnist")
        assert "cifar10dvs, dvs128gesture, ncaltech101, nmnist, asldvs" in refused("shd:nowhere")

    def test_folder_without_its_name(self, tmp_path: Path) -> None:
        raw_events(tmp_path, per_class=1)
        assert "say which data set it is" in refused(tmp_path, data_config=events(2, 128))

    def test_interrupted_preparation(self, tmp_path: Path) -> None:
        (raw_events(tmp_path, per_class=1) / "events_np.building").touch()
        assert "interrupted" in refused(f"dvs128gesture:{tmp_path}", time_steps=4)

    def test_damaged_folders(self, tmp_path: Path) -> None:
        root = raw_events(tmp_path, classes=10, per_class=2)
        assert "10 class folders" in refused(f"dvs128gesture:{root}", time_steps=4)
        name = "frames_number_4_split_by_number"
        folder = self.processed(tmp_path, name) / name / "test"
        spec = f"dvs128gesture:{folder.parent}"
        np.savez(folder / "3" / "a.npz", frames=frames((5, 2, 8, 8)))
        with pytest.raises(DataError, match="one frames_number"):
            every_sample(load_data(spec))
        (folder / "3" / "a.npz").write_bytes(b"")
        assert "cut short" in refused(spec)
        np.savez(folder / "0" / "a.npz", t=[0], x=[0], y=[0])
        assert "holds t [1], x [1], y [1]" in refused(spec, time_steps=4)
