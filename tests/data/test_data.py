"""Sets are disjoint and seeded; data that cannot be used are named in one line."""

import io
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from primesvt.data import (
    DataError,
    ImageSet,
    Preprocess,
    Splits,
    check_channels,
    check_classes,
    check_labels,
    load_data,
)
from primesvt.data.images import Part
from primesvt.data.splits import draw, hold_out


def data_config(size: tuple[int, int, int] = (3, 16, 16), **changes: Any) -> Any:
    """What preprocessing reads of a model's data config."""
    fields: dict[str, Any] = {
        "input_size": size,
        "mean": (0.0,) * size[0],
        "std": (1.0,) * size[0],
        "crop_ratio": 1.0,
        "interpolation": "bicubic",
        "events": False,
    }
    return SimpleNamespace(**(fields | changes))


GREY = data_config((1, 8, 8))


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def image_folder(
    root: Path, *, parts: dict[str, int], classes: tuple[str, ...] = ("a", "b")
) -> Path:
    for part, per_class in parts.items():
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(per_class):
                picture(1000 * label + number).save(root / part / name / f"{number:03}.png")
    return root


def table(path: Path, labels: list[int], **columns: Any) -> Path:
    images = [{"bytes": encoded(picture(n, (8, 8))), "path": None} for n in range(len(labels))]
    pq.write_table(pa.table({"img": images, "label": labels} | columns), path)
    return path


def indices(part: object) -> set[int]:
    assert isinstance(part, ImageSet | Part)
    return set(part.indices.tolist())


def assert_disjoint(splits: Splits) -> None:
    parts = [splits.calibration, splits.selection, splits.test]
    for one, other in combinations([indices(part) for part in parts if part is not None], 2):
        assert not one & other


class TestDigits:
    def test_sizes_add_up_and_sets_are_disjoint(self) -> None:
        splits = load_data("digits", data_config=GREY)
        assert_disjoint(splits)
        assert indices(splits.calibration) <= indices(splits.train)
        every = indices(splits.train) | indices(splits.selection) | indices(splits.test)
        assert every == set(range(1797))
        assert splits.description() == (
            "digits: train 897, calibration 256 (from train), selection 450, test 450 images"
        )

    def test_selection_and_test_do_not_follow_the_seed(self) -> None:
        one, other = (load_data("digits", data_config=GREY, seed=seed) for seed in (0, 1))
        assert indices(one.selection) == indices(other.selection)
        assert indices(one.test) == indices(other.test)
        assert indices(one.calibration) != indices(other.calibration)

    def test_every_set_has_the_classes_in_equal_shares(self) -> None:
        splits = load_data("digits", data_config=GREY)
        for part in (splits.selection, splits.test):
            assert isinstance(part, ImageSet)
            counts = np.bincount(part.labels, minlength=10)
            assert counts.min() >= 43 and counts.max() <= 47

    def test_grey_levels_are_kept(self) -> None:
        image, _ = load_data("digits", data_config=GREY).selection[0]
        assert image.shape == (1, 8, 8) and image.dtype == torch.float32
        levels = image * 16
        assert torch.allclose(levels, levels.round(), atol=0.05)


class TestFolders:
    def test_unseen_evaluation_set_is_split_by_seed(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"train": 6, "val": 10})
        one, other = (load_data(folder, data_config=data_config(), seed=seed) for seed in (0, 1))
        assert len(indices(one.selection)) == len(indices(one.test)) == 10
        assert not indices(one.selection) & indices(one.test)
        assert indices(one.selection) != indices(other.selection)
        assert indices(one.calibration) <= indices(one.train)
        assert not one.selection_from_train

    def test_model_trained_here_has_its_selection_set_held_out(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"train": 10, "test": 4})
        runs = [
            load_data(folder, data_config=data_config(), seed=seed, held_out=True)
            for seed in (0, 1)
        ]
        assert indices(runs[0].selection) == indices(runs[1].selection)
        assert not indices(runs[0].selection) & indices(runs[0].train)
        assert len(indices(runs[0].test)) == 8
        assert not runs[0].selection_from_train

    def test_validation_and_test_are_taken_as_they_are(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"train": 6, "val": 3, "test": 5})
        splits = load_data(folder, data_config=data_config())
        assert len(indices(splits.selection)) == 6 and len(indices(splits.test)) == 10
        assert len(indices(splits.train)) == 12

    def test_one_labelled_set_gives_three_disjoint_sets(self, tmp_path: Path) -> None:
        splits = load_data(image_folder(tmp_path, parts={"val": 15}), data_config=data_config())
        assert_disjoint(splits)
        assert splits.train is None
        assert splits.description().endswith(
            "calibration 10, selection 10, test 10 images; images of 20x16 resized to 16x16"
        )

    def test_selecting_on_training_images_needs_leave_and_is_marked(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"train": 10})
        with pytest.raises(DataError, match="--selection-from-train"):
            load_data(folder, data_config=data_config())
        splits = load_data(folder, data_config=data_config(), allow_selection_from_train=True)
        assert splits.selection_from_train and splits.test is None
        assert "drops look too small" in splits.description()

    def test_labels_are_positions_of_sorted_class_names(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 9}, classes=("zebra", "ant"))
        splits = load_data(folder, data_config=data_config())
        assert isinstance(splits.test, ImageSet)
        assert splits.test.source.classes == ("ant", "zebra")
        assert set(splits.test.labels.tolist()) == {0, 1}


class TestUnusableFolders:
    def refused(self, folder: Path | str) -> str:
        with pytest.raises(DataError) as caught:
            load_data(folder, data_config=data_config())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing(self) -> None:
        assert "nowhere" in self.refused("nowhere")

    def test_empty_image(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        (folder / "val" / "b" / "002.png").write_bytes(b"")
        assert str(Path("val", "b", "002.png")) in self.refused(folder)

    def test_text_named_as_an_image(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        (folder / "val" / "a" / "000.png").write_text("no image")
        assert "000.png" in self.refused(folder)

    def test_empty_class_folder(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        (folder / "val" / "c").mkdir()
        assert "is empty" in self.refused(folder)

    def test_other_files(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        (folder / "val" / "a" / "labels.csv").touch()
        assert "labels.csv" in self.refused(folder)

    def test_images_beside_class_folders(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        picture(0).save(folder / "val" / "stray.png")
        assert "one folder per class" in self.refused(folder)

    def test_classes_that_differ_between_parts(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"train": 6, "val": 6})
        (folder / "val" / "a").rename(folder / "val" / "c")
        assert "'a'" in self.refused(folder)

    def test_two_folders_for_one_part(self, tmp_path: Path) -> None:
        folder = image_folder(tmp_path, parts={"val": 6, "validation": 6})
        assert "same part" in self.refused(folder)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_truncated_image_is_named_when_it_is_read(self, tmp_path: Path, workers: int) -> None:
        folder = image_folder(tmp_path, parts={"val": 6})
        for path in folder.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:400])
        selection = load_data(folder, data_config=data_config()).selection
        with pytest.raises(DataError, match=r"cannot read the image .*\.png") as caught:
            next(iter(DataLoader(selection, batch_size=2, num_workers=workers)))
        assert "\n" not in str(caught.value)


class TestTables:
    def test_parts_by_file_name_and_shards_joined(self, tmp_path: Path) -> None:
        table(tmp_path / "train-00000-of-00002.parquet", [0, 1] * 10)
        table(tmp_path / "train-00001-of-00002.parquet", [2, 1] * 10)
        table(tmp_path / "test.parquet", [0, 1, 2] * 4)
        splits = load_data(tmp_path, data_config=data_config((3, 8, 8)), held_out=True)
        sizes = [len(indices(part)) for part in (splits.train, splits.selection, splits.test)]
        assert sizes == [32, 8, 12]
        check_classes(splits, 3)

    def test_images_are_what_was_stored(self, tmp_path: Path) -> None:
        path = table(tmp_path / "test.parquet", [0, 1, 2] * 4)
        splits = load_data(path, data_config=data_config((3, 8, 8)))
        assert isinstance(splits.test, ImageSet)
        image, label = splits.test[0]
        row = int(splits.test.indices[0])
        stored = torch.from_numpy(np.array(picture(row, (8, 8)))).permute(2, 0, 1)
        assert torch.equal((image * 255).round().to(torch.uint8), stored)
        assert label == row % 3

    def test_unreadable_row_is_named(self, tmp_path: Path) -> None:
        images = [{"bytes": b"", "path": None}] * 9
        pq.write_table(pa.table({"img": images, "label": [0] * 9}), tmp_path / "test.parquet")
        with pytest.raises(DataError, match=r"test\.parquet, row \d"):
            load_data(tmp_path, data_config=data_config())

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"label": [0, 1]}, "needs one column of image bytes"),
            ({"img": [b"a", b"b"], "one": [0, 1], "two": [0, 1]}, "needs one column of image"),
            ({"img": [b"a", b"b"], "label": [0, None]}, "without a label"),
        ],
    )
    def test_columns_that_do_not_fit(
        self, tmp_path: Path, columns: dict[str, Any], reason: str
    ) -> None:
        pq.write_table(pa.table(columns), tmp_path / "test.parquet")
        with pytest.raises(DataError, match=reason):
            load_data(tmp_path, data_config=data_config())

    def test_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "test.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(DataError, match="cannot read the table"):
            load_data(tmp_path, data_config=data_config())


class Frames(Dataset[tuple[torch.Tensor, int]]):
    """Event frames, five time steps an item."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((5, 2, 4, 4), float(index)), index % 3


class TestOwnDatasets:
    def test_dataset_is_one_unseen_set(self) -> None:
        splits = load_data(Frames())
        assert_disjoint(splits)
        assert splits.selection[0][0].shape == (5, 2, 4, 4)

    def test_loader_gives_its_dataset(self) -> None:
        dataset = TensorDataset(torch.rand(9, 1, 8, 8), torch.arange(9))
        splits = load_data(DataLoader(dataset, batch_size=4, shuffle=True))
        assert isinstance(splits.test[0][1] if splits.test else None, int)

    def test_mapping_names_the_parts(self) -> None:
        splits = load_data({"train": Frames(), "validation": Frames(), "test": Frames()})
        assert splits.test is not None and len(indices(splits.test)) == 12
        with pytest.raises(ValueError, match="tests"):
            load_data({"tests": Frames()})

    def test_ready_splits_pass_through(self) -> None:
        splits = load_data(Frames())
        assert load_data(splits) is splits

    def test_bad_samples_are_described(self) -> None:
        with pytest.raises(DataError, match=r"torch\.int64 \[3, 3\]"):
            load_data(TensorDataset(torch.zeros(4, 3, 3, dtype=torch.int64), torch.arange(4)))

    def test_stream_is_refused(self) -> None:
        class Stream(IterableDataset[torch.Tensor]):
            def __iter__(self) -> Any:
                return iter(())

        with pytest.raises(DataError, match="Stream has no length"):
            load_data(Stream())

    def test_too_few_samples(self) -> None:
        for size in (1, 2):
            with pytest.raises(DataError, match=rf"\({size}\): at least 3 are needed; add some"):
                load_data(TensorDataset(torch.rand(size, 1, 8, 8), torch.arange(size)))
        assert len(load_data(TensorDataset(torch.rand(3, 1, 8, 8), torch.arange(3))).selection) == 1

    def test_too_few_samples_to_hold_some_out(self) -> None:
        few = TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
        with pytest.raises(DataError, match="at least 5 are needed"):
            load_data({"train": few}, allow_selection_from_train=True)

    def test_too_few_samples_to_select_and_calibrate(self) -> None:
        one = TensorDataset(torch.rand(1, 1, 8, 8), torch.arange(1))
        with pytest.raises(DataError, match="at least 2 are needed"):
            load_data({"validation": one, "test": one})


class TestClasses:
    def test_class_count_of_the_model_must_fit(self) -> None:
        splits = load_data("digits", data_config=GREY)
        check_classes(splits, 10)
        for wrong in (9, 1000):
            with pytest.raises(DataError, match=f"10 classes, but the model predicts {wrong}"):
                check_classes(splits, wrong)

    def test_labels_out_of_range(self) -> None:
        check_labels(torch.tensor([0, 9]), 10)
        with pytest.raises(DataError, match="label -1"):
            check_labels(torch.tensor([0, -1]), 10)

    def test_listed_labels_of_own_datasets(self) -> None:
        dataset = Frames()
        dataset.targets = [0, 1, 7] * 4  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="label 7"):
            check_classes(load_data(dataset), 3)


class TestKindsOfImages:
    """Sets that are not what a model reads are refused as a whole, not by single photos."""

    def folder(self, root: Path, *images: tuple[str, tuple[int, int]]) -> Path:
        for label in "ab":
            (root / label).mkdir(parents=True)
            for number in range(3):
                mode, size = images[number % len(images)]
                picture(number, size).convert(mode).save(root / label / f"{number}.png")
        return root

    @pytest.mark.parametrize(
        ("images", "size", "phrase"),
        [
            ([("L", (20, 20))], (3, 16, 16), "are grey, but the model reads 3 channels"),
            ([("1", (20, 20)), ("LA", (20, 20))], (3, 16, 16), "are grey, but"),
            ([("RGB", (20, 20))], (1, 16, 16), "are coloured, but the model reads 1 channel"),
            ([("RGBA", (20, 20)), ("RGB", (9, 9))], (1, 16, 16), "are coloured, but"),
            ([("RGB", (15, 8)), ("RGB", (12, 15))], (3, 16, 16), "at most 15x8 pixels"),
        ],
    )
    def test_refused(self, images: Any, size: Any, phrase: str, tmp_path: Path) -> None:
        folder = self.folder(tmp_path / "photos", *images)
        with pytest.raises(DataError, match=phrase) as caught:
            load_data(folder, data_config=data_config(size))
        assert "photos" in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("images", "size"),
        [
            ([("RGB", (20, 20)), ("L", (20, 20))], (3, 16, 16)),  # a grey photo among others
            ([("RGB", (500, 30)), ("RGB", (8, 8))], (3, 16, 16)),  # a small one
            ([("RGB", (16, 9))], (3, 16, 16)),  # as wide as the input
            ([("P", (20, 20))], (1, 16, 16)),  # a palette may be grey or not
            ([("P", (20, 20))], (3, 16, 16)),
            ([("L", (28, 28))], (1, 8, 8)),
        ],
    )
    def test_taken(self, images: Any, size: Any, tmp_path: Path) -> None:
        splits = load_data(self.folder(tmp_path / "x", *images), data_config=data_config(size))
        assert splits.selection[0][0].shape == size

    def test_digits_are_for_models_of_their_size_alone(self) -> None:
        for size in ((3, 8, 8), (1, 16, 16)):
            with pytest.raises(DataError, match=f"but the model reads {size[0]}x{size[1]}"):
                load_data("digits", data_config=data_config(size))

    def test_first_samples_have_the_channels_of_the_model(self) -> None:
        splits = load_data(TensorDataset(torch.rand(9, 4, 3, 8, 8), torch.arange(9)))
        check_channels(splits, 3)  # event frames: [T, C, H, W]
        with pytest.raises(DataError, match=r"samples of 3 channels \(\[4, 3, 8, 8\]\)"):
            check_channels(splits, 2)

    def test_a_dataset_that_names_its_classes_has_their_count(self) -> None:
        dataset = TensorDataset(torch.rand(9, 1, 8, 8), torch.arange(9) % 3)
        dataset.classes = ["a", "b", "c"]  # type: ignore[attr-defined]
        check_classes(load_data(dataset), 3)
        with pytest.raises(DataError, match="3 classes, but the model predicts 10"):
            check_classes(load_data(dataset), 10)


class TestPreprocess:
    def test_fitting_image_is_only_normalised(self) -> None:
        config = data_config((3, 16, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
        raw = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1) / 255
        mean = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)
        std = torch.tensor([0.2, 0.2, 0.1]).reshape(3, 1, 1)
        assert torch.allclose(Preprocess(config)(picture(0)), (raw - mean) / std, atol=1e-6)

    @pytest.mark.parametrize("size", [(20, 16), (7, 90), (300, 16)])
    @pytest.mark.parametrize("crop_ratio", [0.875, 1.0])
    def test_any_image_gets_the_input_size(self, size: tuple[int, int], crop_ratio: float) -> None:
        config = data_config((3, 16, 16), crop_ratio=crop_ratio)
        assert Preprocess(config)(picture(0, size)).shape == (3, 16, 16)

    def test_centre_is_cropped(self) -> None:
        image = Image.new("L", (32, 16), color=255)
        image.paste(0, (8, 0, 24, 16))
        assert Preprocess(data_config((1, 16, 16), crop_ratio=1.0))(image).max() == 0

    @pytest.mark.parametrize("size", [(500, 375), (333, 500), (64, 64), (257, 256), (30, 91)])
    def test_same_pixels_as_the_evaluation_of_published_models(self, size: tuple[int, int]) -> None:
        transforms = pytest.importorskip("torchvision.transforms")
        config = data_config((3, 56, 56), crop_ratio=0.875)
        published = transforms.Compose(
            [
                transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(56),
                transforms.ToTensor(),
            ]
        )
        image = picture(0, size)
        assert torch.equal(Preprocess(config)(image), published(image))

    def test_bad_config(self) -> None:
        with pytest.raises(ValueError, match="bicubic"):
            Preprocess(data_config(interpolation="cubic"))
        with pytest.raises(ValueError, match="2"):
            Preprocess(data_config((2, 8, 8)))
        with pytest.raises(ValueError, match="data_config"):
            load_data(Path(__file__).parents[1])


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 4), min_size=10, max_size=80), seed=st.integers(0, 99))
def test_draws_are_disjoint_complete_and_balanced(labels: list[int], seed: int) -> None:
    dataset = TensorDataset(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels))
    dataset.targets = labels  # type: ignore[attr-defined]
    pool = Part(dataset, name="pool", indices=np.arange(len(labels)))
    third = len(labels) // 3
    parts = draw(pool, [third, third], seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(parts, draw(pool, [third, third], seed=seed), strict=True)
    )
    for part in parts[:2]:
        shares = np.bincount(np.array(labels)[part], minlength=5) / third
        overall = np.bincount(labels, minlength=5) / len(labels)
        assert np.abs(shares - overall).max() <= 2 / third
    train, selection = hold_out(pool)
    assert not indices(train) & indices(selection)


def test_samples_are_prepared_once_as_far_as_memory_allows(monkeypatch):
    chosen = load_data("digits").selection
    prepared, prepare = [], chosen.preprocess
    chosen.preprocess = lambda image: prepared.append(1) or prepare(image)
    first = [chosen[n][0].clone() for n in range(5)]
    assert all(torch.equal(chosen[n][0], first[n]) for n in range(5))
    assert len(prepared) == 5
    monkeypatch.setattr("primesvt.data.images.REMEMBERED", 7 * first[0].nbytes)
    for _ in range(2):
        [chosen[n] for n in range(10)]
    assert len(prepared) == 5 + 2 + 3 + 3
