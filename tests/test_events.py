"""Event frames from files and from SpikingJelly's folders: read exactly, used everywhere."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from primesvt import prune
from primesvt.checkpoint import OpenedModel
from primesvt.constraints import Constraints
from primesvt.data import DataError, ImageSet, Splits, check_classes, load_data
from primesvt.data.event_folders import EVENT_DATASETS, integrate
from primesvt.data.frame_files import FrameFile
from primesvt.models import model_entry
from primesvt.models.entry import events
from primesvt.training import TrainRecipe, train
from primesvt.training.augmentation import Augmentation

from .event_samples import LABELS, event_model, frames, polarities, written

GESTURE = EVENT_DATASETS["dvs128gesture"]


def refused(spec: str | Path, **known: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(spec, **known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_sample(splits: Splits) -> dict[int, tuple[torch.Tensor, int]]:
    """All samples of the three sets by their place in the file."""
    found: dict[int, tuple[torch.Tensor, int]] = {}
    for part in (splits.calibration, splits.selection, splits.test):
        assert isinstance(part, ImageSet)
        assert not set(part.indices.tolist()) & set(found)
        found |= {int(place): part[k] for k, place in enumerate(part.indices)}
    return found


class TestFiles:
    @pytest.mark.parametrize("name", ["frames.npz", "frames.pt"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.bool_])
    def test_frames_and_labels_are_what_was_stored(
        self, tmp_path: Path, name: str, dtype: Any
    ) -> None:
        stored = frames(dtype=dtype)
        samples = every_sample(
            load_data(written(tmp_path / name, frames=stored, labels=LABELS), time_steps=5)
        )
        assert len(samples) == 12
        for place, (sample, label) in samples.items():
            assert sample.dtype == torch.float32 and label == LABELS[place]
            assert np.array_equal(sample.numpy(), stored[place].astype(np.float32))

    @pytest.mark.parametrize("keys", [("x", "y"), ("data", "targets"), ("Frames", "Label")])
    @pytest.mark.parametrize("suffix", [".npz", ".pt"])
    def test_keys_that_people_use(self, tmp_path: Path, keys: tuple[str, str], suffix: str) -> None:
        path = written(tmp_path / f"a{suffix}", **dict(zip(keys, (frames(), LABELS), strict=True)))
        assert FrameFile(path).shape == (5, 2, 8, 8)

    def test_pair_in_a_pt_file(self, tmp_path: Path) -> None:
        path = tmp_path / "pair.pt"
        torch.save((torch.from_numpy(frames()), LABELS.tolist()), path)
        assert FrameFile(path).labels.tolist() == LABELS.tolist()

    def test_fortran_order_and_compression_read_the_same(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "f.npz", frames=np.asfortranarray(frames()), labels=LABELS)
        np.savez_compressed(tmp_path / "c.npz", frames=frames(), labels=LABELS)
        for name in ("f.npz", "c.npz"):
            assert np.array_equal(FrameFile(tmp_path / name).sample(7).numpy(), frames()[7])

    def test_stored_frames_are_mapped_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path / "frames.npz")
        read: list[str] = []
        kept = np.lib.npyio.NpzFile.__getitem__

        def reading(archive: Any, key: str) -> Any:
            read.append(key)
            return kept(archive, key)

        monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", reading)
        assert np.array_equal(FrameFile(path).sample(3).numpy(), frames()[3])
        assert read == ["labels"]

    def test_parts_by_file_name(self, tmp_path: Path) -> None:
        written(tmp_path / "train.npz", frames=frames((20, 5, 2, 8, 8)), labels=np.arange(20) % 3)
        written(tmp_path / "test.pt")
        splits = load_data(tmp_path, held_out=True)
        assert len(splits.train) == 16 and len(splits.selection) == 4  # type: ignore[arg-type]
        assert splits.test is not None and len(splits.test) == 12  # type: ignore[arg-type]

    def test_description_names_steps_and_size(self, tmp_path: Path) -> None:
        path = written(tmp_path / "frames.npz")
        assert load_data(path, data_config=events(2, 8), time_steps=5).description() == (
            "frames.npz (5 time steps of 2x8x8): calibration 4, selection 4, test 4 samples"
        )
        other = load_data(path, data_config=events(2, 4), time_steps=10)
        assert other.form == "5 time steps of 2x8x8, not the model's 10; averaged down to 4x4"

    def test_smaller_frames_are_block_means(self, tmp_path: Path) -> None:
        samples = every_sample(
            load_data(written(tmp_path / "frames.npz"), data_config=events(2, 4))
        )
        means = frames().reshape(12, 5, 2, 4, 2, 4, 2).mean((4, 6))
        for place, (sample, _) in samples.items():
            assert np.allclose(sample.numpy(), means[place], atol=1e-6)

    def test_larger_frames_are_interpolated(self, tmp_path: Path) -> None:
        splits = load_data(written(tmp_path / "frames.npz"), data_config=events(2, 12))
        assert "interpolated to 12x12" in splits.form
        assert every_sample(splits)[0][0].shape == (5, 2, 12, 12)

    def test_labels_only_have_to_be_in_range(self, tmp_path: Path) -> None:
        splits = load_data(written(tmp_path / "frames.npz"))
        check_classes(splits, 3)
        check_classes(splits, 11)
        with pytest.raises(DataError, match="label 2, but the model knows 0 to 1"):
            check_classes(splits, 2)


class TestUnusableFiles:
    @pytest.mark.parametrize("suffix", [".npz", ".pt"])
    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            ({"images": frames(), "labels": LABELS}, "no array of frames: it holds 'images', 'la"),
            ({"frames": frames(), "classes": LABELS}, "no array of labels: it holds 'frames', 'c"),
            ({"x": frames(), "data": frames(), "y": LABELS}, "more than one array of frames"),
            ({"frames": frames()[0], "labels": LABELS}, "[samples, time steps, channels, height"),
            ({"frames": frames()[:0], "labels": LABELS}, "[0, 5, 2, 8, 8]"),
            ({"frames": frames(), "labels": LABELS[:7]}, "7 labels, but 12 samples"),
            ({"frames": frames(), "labels": LABELS[:5]}, "begin with the time axis?"),
            ({"frames": frames(), "labels": LABELS / 2}, "one whole number for each sample"),
            ({"frames": frames(), "labels": np.eye(12, dtype=int)}, "one whole number for each"),
        ],
    )
    def test_contents_that_do_not_fit(
        self, tmp_path: Path, suffix: str, arrays: dict[str, Any], reason: str
    ) -> None:
        assert reason in refused(written(tmp_path / f"a{suffix}", **arrays))

    @pytest.mark.parametrize("suffix", [".npz", ".pt"])
    def test_cut_short(self, tmp_path: Path, suffix: str) -> None:
        path = written(tmp_path / f"a{suffix}")
        path.write_bytes(path.read_bytes()[:2000])
        assert f"cannot read the frames {path}" in refused(path)

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", frames=np.array([{}, {}]), labels=[0, 1])
        assert "cannot read the frames" in refused(tmp_path / "a.npz")
        torch.save({"frames": types.SimpleNamespace(), "labels": 0}, tmp_path / "a.pt")
        assert "more than tensors" in refused(tmp_path / "a.pt")

    def test_state_dict_and_single_tensor(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(3), tmp_path / "one.pt")
        assert "save a dict" in refused(tmp_path / "one.pt")
        with (tmp_path / "one.npz").open("wb") as file:
            np.save(file, frames())
        assert "holds one array alone" in refused(tmp_path / "one.npz")
        torch.save({"head.weight": torch.zeros(3)}, tmp_path / "state.pt")
        assert "'head.weight'" in refused(tmp_path / "state.pt")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_names_the_sample(self, tmp_path: Path, value: float) -> None:
        stored = frames(dtype=np.float32)
        stored[7, 2, 1, 3, 3] = value
        splits = load_data(written(tmp_path / "a.npz", frames=stored, labels=LABELS))
        with pytest.raises(DataError, match=r"a\.npz, sample 7 hold NaN or infinity"):
            every_sample(splits)

    def test_channels_of_the_model_must_fit(self, tmp_path: Path) -> None:
        said = refused(written(tmp_path / "a.npz"), data_config=model_entry("sdt_v2_small").data)
        assert "frames of 2 channels, but the model reads 3" in said

    def test_parts_must_be_alike(self, tmp_path: Path) -> None:
        written(tmp_path / "train.npz")
        written(tmp_path / "test.npz", frames=frames((12, 4, 2, 8, 8)), labels=LABELS)
        assert "[5, 2, 8, 8]" in refused(tmp_path)
        written(tmp_path / "train.pt")
        assert "the same part" in refused(tmp_path)

    def test_images_for_a_model_of_event_frames(self) -> None:
        with pytest.raises(ValueError, match="reads event frames of 2 channels"):
            load_data("digits", data_config=events(2, 8))


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


class TestWithModels:
    def test_example_of_an_event_model(self) -> None:
        assert OpenedModel(model=event_model()).example().shape == (2, 4, 2, 8, 8)

    def test_prune_in_python(self, tmp_path: Path) -> None:
        shown, labels = polarities(30)
        path = written(tmp_path / "frames.npz", frames=shown, labels=labels)
        result = prune(
            event_model(),
            data=path,
            constraints=Constraints(max_accuracy_drop=20, min_memory_saving=None),
            include=["*.block3_0.mlp.fc1"],
            rates=[0.5],
        )
        assert result.plan.inputs[0]["shape"] == [1, 4, 2, 8, 8]
        assert "4 time steps of 2x8x8" in result.metrics.data

    def test_training_learns_from_frames(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for part, count in (("train", 60), ("test", 30)):
            shown, labels = polarities(count, seed=count)
            written(tmp_path / f"{part}.npz", frames=shown, labels=labels)
        entry = model_entry("sdt_v2_digits")
        monkeypatch.setattr(
            "primesvt.training.run.model_entry",
            lambda name: dataclasses.replace(entry, data=events(2, 8)),
        )
        recipe = TrainRecipe(
            model_options={"in_channels": 2, "num_classes": 3},
            data=str(tmp_path),
            epochs=6,
            batch_size=12,
            learning_rate=0.015,
            warmup_epochs=1,
            norm_weight=2.0,
            augmentation=Augmentation(flip=True),
        )
        record = train(recipe, out_dir=tmp_path / "out")
        assert record.test is not None and record.test.accuracy > 0.6
        assert "(4 time steps of 2x8x8, not the model's 2): train 48" in record.data


@pytest.mark.parametrize("change", [{"flip": True}, {"shift": 2}])
def test_augmentation_moves_all_frames_of_a_sample_alike(change: dict[str, Any]) -> None:
    shown = torch.from_numpy(frames((8, 5, 2, 8, 8), dtype=np.float32))
    moved = Augmentation(**change)(shown, torch.zeros(2), torch.Generator().manual_seed(0))
    assert moved.shape == shown.shape and not torch.equal(moved, shown)
    for before, after in zip(shown, moved, strict=True):
        assert any(torch.allclose(after, each, atol=1e-5) for each in candidates(before, change))


def candidates(sample: torch.Tensor, change: dict[str, Any]) -> list[torch.Tensor]:
    """All that may become of one sample, frame by frame the same."""
    if "flip" in change:
        return [sample, sample.flip(-1)]
    reach = change["shift"]
    padded = F.pad(sample, (reach,) * 4)
    spots = range(2 * reach + 1)
    return [padded[..., i : i + 8, j : j + 8] for i in spots for j in spots]
