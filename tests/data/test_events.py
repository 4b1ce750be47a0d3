"""Event frames from files: read exactly, used everywhere."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from primesvt import prune
from primesvt.checkpoint.load import OpenedModel
from primesvt.config import Constraints
from primesvt.data import DataError, check_classes, load_data
from primesvt.data.config import events
from primesvt.data.frames import FrameFile
from primesvt.models import model_entry
from primesvt.models.registry import provenance_of
from primesvt.training import TrainRecipe, train
from primesvt.training.augmentation import Augmentation

from .event_samples import (
    LABELS,
    event_model,
    every_sample,
    frames,
    polarities,
    refused,
    written,
)


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
        monkeypatch.setattr(
            "primesvt.training.run.provenance_of",
            lambda model: dataclasses.replace(provenance_of(model), data=events(2, 8)),
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
