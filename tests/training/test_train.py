"""Training repeats bitwise, keeps its best epoch, and leaves no half-written folder behind."""

import hashlib
import json
import signal
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from primesvt.checkpoint.folder import load
from primesvt.cli import main
from primesvt.data import load_data
from primesvt.distributed import SINGLE_PROCESS
from primesvt.evaluation.evaluator import outcomes
from primesvt.models import create_model, model_entry
from primesvt.training import (
    Augmentation,
    TrainProgress,
    TrainRecipe,
    TrainRecord,
    read_train_recipe,
    train,
)
from primesvt.training import run as fit
from primesvt.training.run import learning_rate_factor
from primesvt.training.snapshot import Snapshot

from ..bars import write_bars
from ..forked import forked
from ..same_files import assert_same_files

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return write_bars(tmp_path / "bars")


def recipe(bars: Path, **changes: Any) -> TrainRecipe:
    fields: dict[str, Any] = {"data": str(bars), "epochs": 2, "batch_size": 16, "warmup_epochs": 0}
    return TrainRecipe(**(fields | changes))


def test_same_recipe_gives_the_same_weights_bitwise(bars: Path, tmp_path: Path) -> None:
    changes = {"augmentation": Augmentation(shift=1, rotate=10, flip=True)}
    records = []
    for number, disturbance in enumerate((1, 2)):
        torch.manual_seed(disturbance)
        records.append(train(recipe(bars, **changes), out_dir=tmp_path / str(number)))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "01")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert records[0].loss == records[1].loss
    third = train(recipe(bars, seed=1, **changes), out_dir=tmp_path / "2")
    assert third.loss != records[0].loss


def test_callers_random_state_and_threads_are_put_back(bars: Path, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(recipe(bars, epochs=1), out_dir=tmp_path / "out")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_record_says_how_the_model_was_made(bars: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    record = train(
        recipe(bars, epochs=3),
        out_dir=tmp_path / "out",
        command="primesvt train",
        progress=lambda *call: calls.append(call),
    )
    written = json.loads((tmp_path / "out" / "record.json").read_text())
    assert written == json.loads(json.dumps(record.to_dict()))
    assert TrainRecipe.model_validate(written["recipe"]) == recipe(bars, epochs=3)
    assert written["command"] == "primesvt train"
    assert record.test is not None and record.test.images == 20
    assert record.selection.images == 16
    assert record.selection.low <= record.selection.accuracy <= record.selection.high
    assert calls == [("training", step, 12) for step in range(1, 13)]


def test_best_epoch_on_selection_is_kept(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.75, 0.75, 0.25, 0.75, 0.9])  # four epochs, then selection and test
    states: list[dict[str, torch.Tensor]] = []

    def scripted(model: torch.nn.Module, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return np.arange(100) < 100 * next(scores)

    monkeypatch.setattr(fit, "outcomes", scripted)
    record = train(recipe(bars, epochs=4), out_dir=tmp_path / "out")
    assert record.kept_epoch == 3
    assert record.selection_accuracy == (0.5, 0.75, 0.75, 0.25)
    assert record.test is not None and record.test.accuracy == 0.9
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], states[2][name]) for name in saved)


LEARNS: dict[str, Any] = {
    "model_options": {"time_steps": 1},
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 0.02,
    "norm_weight": 2,
}


def test_bars_are_learned(bars: Path, tmp_path: Path) -> None:
    quick = recipe(bars, **LEARNS)
    record = train(quick, out_dir=tmp_path / "out")
    assert record.test is not None and record.test.accuracy > 0.9


def test_a_trained_model_goes_on_with_more_time_steps(bars: Path, tmp_path: Path) -> None:
    steps, quiet = {"time_steps": 1}, {"learning_rate": 1e-12, "weight_decay": 0, "epochs": 1}
    train(recipe(bars, model_options=steps, norm_weight=2), out_dir=tmp_path / "one")
    more = recipe(bars, model_options={"time_steps": 2}, start=str(tmp_path / "one"), **quiet)
    train(more, out_dir=tmp_path / "two")
    before, after = load(tmp_path / "one"), load(tmp_path / "two")
    assert after.time_steps == 2
    weights = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        torch.testing.assert_close(parameter, weights[name])
    with pytest.raises(
        ValueError, match=r"start: the model in .* does not fit: .* of another shape"
    ):
        train(
            recipe(bars, model="sdt_v1_digits", start=str(tmp_path / "one")), out_dir=tmp_path / "x"
        )


def test_saved_model_loads_to_the_same_logits(bars: Path, tmp_path: Path) -> None:

    record = train(recipe(bars, epochs=1), out_dir=tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.provenance is not None and model.provenance.held_out
    test = load_data(bars, data_config=model_entry("sdt_v2_digits").data, held_out=True).test
    assert test is not None and record.test is not None
    assert outcomes(model, test, batch_size=128).mean() == record.test.accuracy


def test_diverging_training_says_what_to_change(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower learning_rate"):
        train(
            recipe(bars, learning_rate=1e30, gradient_clip=None, epochs=4),
            out_dir=tmp_path / "out",
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.yaml"]


def test_folder_of_another_run_is_refused(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").touch()
    with pytest.raises(ValueError, match="holds something else"):
        train(recipe(bars), out_dir=tmp_path / "out")


def test_data_without_training_images(bars: Path, tmp_path: Path) -> None:
    (bars / "train.parquet").unlink()
    with pytest.raises(ValueError, match="no training images"):
        train(recipe(bars), out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_is_refused_first(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to folder .*file/new/out"):
        train(recipe(bars, data="gone"), out_dir=tmp_path / "file" / "new" / "out")


def test_relative_folder_may_be_used(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out", "plan.json").touch()
    with pytest.raises(ValueError, match="holds something else"):
        train(recipe(bars), out_dir="out")
    train(recipe(bars, epochs=1), out_dir="runs/new")
    assert Path("runs/new/record.json").is_file()


def test_unknown_model_option_names_the_allowed(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_options: .*'width'.*embed_dims"):
        train(recipe(bars, model_options={"width": 3}), out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_count_that_does_not_fit(bars: Path, tmp_path: Path) -> None:
    options = {"num_classes": 12}
    with pytest.raises(ValueError, match="10 classes, but the model predicts 12"):
        train(recipe(bars, model_options=options), out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_killed_again_and_again_it_ends_with_the_same_weights(bars: Path, tmp_path: Path) -> None:
    """SIGKILL within an epoch, between two, while a snapshot is written, and before the record."""
    asked = recipe(bars, **RESUMED)
    whole = train(asked, out_dir=tmp_path / "whole")
    out, reached = tmp_path / "out", []
    with forked(KILLED) as start:
        for moment, count in (("step", 3), ("epoch", 1), ("half a file", 2), ("record", 1)):
            code = start(bars, out, json.dumps(RESUMED), moment, count)
            assert code == -signal.SIGKILL, start.said()
            assert not (out / "record.json").exists()
            facts = Snapshot.load(out / "state.safetensors").facts
            reached.append((len(facts["losses"]), facts["step"]))
    assert reached == [(0, 2), (0, 4), (1, 0), (3, 0)]
    assert set(json.loads((out / "progress.json").read_text())) >= {"epochs_done", "loss"}

    record = train(asked, out_dir=out)
    assert_same_files(out, tmp_path / "whole", ["model/model.safetensors"])
    same = ("loss", "selection_accuracy", "kept_epoch", "selection", "test", "notes", "context")
    assert all(getattr(record, field) == getattr(whole, field) for field in same)
    assert {path.name for path in out.iterdir()} == {"model", "recipe.yaml", "record.json"}


SMALL = {"time_steps": 1, "embed_dims": (8, 8, 8, 8), "num_heads": 2}
RESUMED: dict[str, Any] = {
    "model_options": SMALL,
    "epochs": 3,
    "ema": 0.9,
    "precision": "bf16",
    "augmentation": {"shift": 1, "flip": True, "mixup": 0.2, "cutmix": 1.0},
}

KILLED = """
import json, os, signal
import torch
torch.set_num_threads(1)
from primesvt import _files
from primesvt.training import TrainRecipe, folder, loop, train
from primesvt.training import run as fit

def dies(name, real, done=[]):
    def called(*args, **options):
        done.append(name)
        if name == moment and done.count(name) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return called

torch.optim.AdamW([torch.zeros(1)])  # imports more than a second of torch, once

loop.TrainingLoop._update = dies("step", loop.TrainingLoop._update)
fit.Fit.score = dies("epoch", fit.Fit.score)
_files.os.fsync = dies("half a file", _files.os.fsync)
folder.TrainingFolder.finish = dies("record", folder.TrainingFolder.finish)

def main(data, out, changes, moment_, count_):
    global moment, count
    moment, count = moment_, count_
    base = {"data": data, "batch_size": 16, "warmup_epochs": 0}
    train(TrainRecipe(**base, **json.loads(changes)), out_dir=out, save_every=0)
"""


def test_a_lack_of_memory_is_no_damage(bars: Path, tmp_path: Path, monkeypatch) -> None:
    train(recipe(bars), out_dir=tmp_path / "out", stop_after=0)

    def restore(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fit.Fit, "restore", restore)
    with pytest.raises(torch.OutOfMemoryError):
        train(recipe(bars), out_dir=tmp_path / "out")
    assert (tmp_path / "out" / "state.safetensors").is_file()


def test_it_stops_at_an_epoch_and_goes_on(bars: Path, tmp_path: Path) -> None:
    asked = recipe(bars, epochs=3, augmentation=Augmentation(shift=1))
    whole = train(asked, out_dir=tmp_path / "whole")
    out = tmp_path / "out"
    for epochs in (1, 2):
        progress = train(asked, out_dir=out, stop_after=0)
        assert isinstance(progress, TrainProgress)
        assert (progress.epochs_done, progress.epochs) == (epochs, 3)
        assert progress.loss == whole.loss[:epochs]
        written = json.loads((out / "progress.json").read_text())
        assert written["selection_accuracy"] == list(progress.selection_accuracy)
        assert not (out / "model").exists()
    record = train(asked, out_dir=out, stop_after=0)
    assert isinstance(record, TrainRecord) and record.loss == whole.loss
    assert record.seconds >= progress.seconds
    assert_same_files(out, tmp_path / "whole", ["model/model.safetensors"])


def test_no_epoch_begins_that_would_end_too_late(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100000, 10))  # each look at the clock is 10 seconds later
    monkeypatch.setattr(fit.time, "monotonic", lambda: float(next(clock)))
    progress = train(recipe(bars, epochs=9), out_dir=tmp_path / "out", stop_after=200)
    assert isinstance(progress, TrainProgress)
    assert 1 < progress.epochs_done < 9


def test_another_recipe_in_the_folder_is_refused(bars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(recipe(bars), out_dir=out, stop_after=0)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        ValueError, match=r"recipe\.ema is 0\.0 there and 0\.5 here; choose another"
    ):
        train(recipe(bars, ema=0.5), out_dir=out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    record = train(recipe(bars), out_dir=out)
    with pytest.raises(ValueError, match=r"recipe\.seed is 0 there and 1 here"):
        train(recipe(bars, seed=1), out_dir=out)
    again = train(recipe(bars), out_dir=out)
    assert json.dumps(again.to_dict()) == json.dumps(record.to_dict())


def test_other_images_in_the_same_place_are_refused(bars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(recipe(bars), out_dir=out, stop_after=0)
    write_bars(bars, train=120)
    with pytest.raises(ValueError, match="training_images is 64 there and"):
        train(recipe(bars), out_dir=out)


def test_bf16_and_the_average_train(bars: Path, tmp_path: Path) -> None:
    quick = recipe(bars, **LEARNS, ema=0.8, precision="bf16")
    record = train(quick, out_dir=tmp_path / "out")
    assert record.test is not None and record.test.accuracy > 0.9


def test_schedule_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(101)]
    assert factors[9] == 1 and factors[100] == 0
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:])[::-1]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path: Path) -> None:
    if "epochs" in path.read_text():
        assert read_train_recipe(path).epochs > 0


def test_bundled_model_is_what_its_record_says() -> None:
    weights = files("primesvt").joinpath("weights")
    record = json.loads(weights.joinpath("sdt_v2_digits.json").read_text())
    assert record["command"] == "primesvt train --recipe recipes/digits.yaml"
    made_with = TrainRecipe.model_validate(record["recipe"])
    assert made_with == read_train_recipe(RECIPES / "digits.yaml")
    assert record["seconds"] < 600
    assert len(weights.joinpath("sdt_v2_digits.safetensors").read_bytes()) < 1e6
    model = create_model("sdt_v2_digits", pretrained=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    splits = load_data("digits")
    for name, images in (("selection", splits.selection), ("test", splits.test)):
        assert images is not None
        correct = outcomes(model, images, batch_size=150)
        # Another machine may round a spike the other way.
        assert abs(correct.mean() - record[name]["accuracy"]) <= 2 / len(correct)
        assert record[name]["accuracy"] >= 0.96


def test_recipe_errors_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for content in ("epochs: 0\nlearning_rte: 1", "epochs: [", "just words", ""):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"r\.yaml") as caught:
            read_train_recipe(path)
        assert "\n" not in str(caught.value)


def test_recipe_that_is_empty_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").touch()
    with pytest.raises(ValueError, match=r"e\.yaml holds no recipe: expected 'field: value' lines"):
        read_train_recipe(tmp_path / "e.yaml")
    with pytest.raises(ValueError, match=r"^there is no recipe file 'gone\.yaml'$"):
        read_train_recipe("gone.yaml")
    with pytest.raises(ValueError, match="is a folder, no file"):
        read_train_recipe(tmp_path)


def test_flags_stand_in_place_of_the_recipe(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: gone\nepochs: 1\nmodel_options: {time_steps: 1}\n")
    words = ["train", "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(bars), "--batch-size", "32", "--seed", "4"]) == 0
    used = json.loads((tmp_path / "out" / "record.json").read_text())["recipe"]
    assert (used["data"], used["batch_size"], used["seed"]) == (str(bars), 32, 4)
    assert (used["epochs"], used["model_options"]) == (1, {"time_steps": 1})


def test_interrupt_says_what_is_left(
    bars: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit.Fit, "run", interrupt)
    (tmp_path / "r.yaml").write_text(f"data: {bars}\n")
    words = ["train", "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    assert main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.yaml"]


def test_flag_that_is_not_allowed(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(f"data: {bars}\n")
    assert main(["train", "--recipe", str(tmp_path / "r.yaml"), "--batch-size", "1"]) == 1
    assert "batch_size: 1, input should be greater" in capsys.readouterr().err


class TestAugmentation:
    images = torch.rand(6, 2, 9, 12, generator=torch.Generator().manual_seed(0))

    def moved(self, images: torch.Tensor | None = None, **amounts: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        images = self.images if images is None else images
        return Augmentation(**amounts)(images, torch.zeros(2), generator)

    def test_whole_pixel_shifts_are_exact(self) -> None:
        for image, moved in zip(self.images, self.moved(shift=2), strict=True):
            padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
            windows = [padded[:, y : y + 9, x : x + 12] for y in range(5) for x in range(5)]
            assert any(torch.allclose(moved, window, atol=1e-5) for window in windows)

    def test_flip_mirrors_some(self) -> None:
        same = [
            torch.allclose(a, b, atol=1e-5)
            for a, b in zip(self.moved(flip=True), self.images, strict=True)
        ]
        mirrored = [
            torch.allclose(a, b.flip(-1), atol=1e-5)
            for a, b in zip(self.moved(flip=True), self.images, strict=True)
        ]
        assert all(a != b for a, b in zip(same, mirrored, strict=True))
        assert any(same) and any(mirrored)

    def test_all_time_steps_move_alike(self) -> None:
        event = self.images.unsqueeze(1).repeat(1, 3, 1, 1, 1)
        moved = self.moved(event, shift=1, rotate=20, scale=0.2)
        assert moved.shape == event.shape
        assert torch.equal(moved[:, 0], moved[:, 2]) and not torch.equal(moved, event)

    def test_fill_is_what_moves_in(self) -> None:
        black = torch.tensor([-2.0, -1.0])
        images = black.reshape(1, 2, 1, 1).expand(5, 2, 8, 8)
        moved = Augmentation(shift=3, rotate=90)(images, black, torch.Generator().manual_seed(0))
        assert torch.allclose(moved, images, atol=1e-5)


def test_a_damaged_state_is_one_line_and_nothing_is_lost(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts of another shape or type, tensors that are gone, a file cut short.

    All attempts share one network and one data set, into which each reads its state.
    """
    asked, out = recipe(bars, **RESUMED), tmp_path / "out"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, out_dir=out, progress=interrupt, save_every=0)  # within an epoch
    state = out / "state.safetensors"
    whole = state.read_bytes()
    with monkeypatch.context() as patch:
        prepared = fit._prepared(asked, SINGLE_PROCESS, 0)
        patch.setattr(fit, "_prepared", lambda *_: prepared)
        for what, content in damaged(state, tmp_path / "damaged.safetensors").items():
            state.write_bytes(content)
            said = ""
            try:
                train(asked, out_dir=out)
            except ValueError as error:
                said = str(error)
            assert "delete it" in said and "\n" not in said, what
            assert digest(state.read_bytes()) == digest(content), what
    state.write_bytes(whole)
    train(asked, out_dir=out)


def damaged(state: Path, scratch: Path) -> dict[str, bytes]:
    """Contents that are no state of a training, by what is wrong with them."""
    whole, good = state.read_bytes(), Snapshot.load(state)
    facts = dict(good.facts)
    parts: list[bytes] = [whole[: len(whole) // 2], b"", b"{}", whole[:100] + b"x" * 50]
    made = {f"content {i}": part for i, part in enumerate(parts)}
    needed = set(facts) - {"versions"}  # which are only told
    odd: list[Any] = [{}, {**facts, "step": "many"}, {**facts, "step": -1}, {**facts, "losses": 3}]
    odd += [{name: v for name, v in facts.items() if name != gone} for gone in needed]
    for facts_there in odd:
        Snapshot(tensors=good.tensors, facts=facts_there).save(scratch)
        made[f"facts {sorted(facts_there.items())}"] = scratch.read_bytes()
    for name in one_of_each_kind(good.tensors):
        fewer = {n: t for n, t in good.tensors.items() if n != name}
        Snapshot(tensors=fewer, facts=facts).save(scratch)
        made[f"no {name}"] = scratch.read_bytes()
    return made


def one_of_each_kind(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Of each part of a state (model, average, optimizer) a weight, a bias, a moment ...

    The one in the middle of its kind. Counters of batch norms may be missing.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in tensors:
        kinds.setdefault((name.split(".")[0], name.rpartition(".")[2]), []).append(name)
    return [
        each[len(each) // 2] for (_, kind), each in kinds.items() if kind != "num_batches_tracked"
    ]


def digest(content: bytes) -> str:
    """A short stand-in for megabytes, whose difference would take minutes to show."""
    return hashlib.sha256(content).hexdigest()
