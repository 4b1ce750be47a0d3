"""Fine-tuning from a run folder, and of networks given in Python."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
import yaml
from spikingjelly.activation_based import neuron
from torch import nn
from torch.utils.data import Subset

import primesvt
from primesvt import Constraints, FinetuneRecipe, finetune, prune
from primesvt.checkpoint.folder import save_model
from primesvt.models import create_model
from primesvt.models.digest import model_digest
from primesvt.training import finetuning as tuning


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_tuned_in_its_folder(run, short, pruned) -> None:
    result = finetune(run, recipe=short | {"epochs": 4}, command="primesvt finetune")
    record, metrics = result.record, json.loads((run / "metrics.json").read_text())
    assert record.before.selection.accuracy == metrics["after"]["selection"]["accuracy"]
    assert record.before.test.accuracy == metrics["after"]["test"]["accuracy"]
    assert record.unpruned.test.accuracy == metrics["before"]["test"]["accuracy"]
    assert record.selection.accuracy > record.before.selection.accuracy + 0.2
    assert record.test.accuracy > record.before.test.accuracy + 0.2
    assert record.test.low < record.test.accuracy < record.test.high

    assert len(record.loss) == 4 and len(record.selection_accuracy) == 5
    assert record.loss[-1] < record.loss[0]
    assert record.selection_accuracy[record.kept_epoch] == max(record.selection_accuracy)
    assert record.run == str(run) and record.command == "primesvt finetune"
    assert record.context["pruned_model"] == model_digest(pruned)

    folder = run / "finetuned"
    assert json.loads((folder / "record.json").read_text()) == json.loads(
        json.dumps(record.to_dict())
    )
    assert {path.name for path in folder.iterdir()} == {
        "model", "plan.json", "recipe.yaml", "record.json",
    }  # fmt: skip
    assert (folder / "plan.json").read_bytes() == (run / "plan.json").read_bytes()
    for place in (folder, folder / "model"):
        loaded = primesvt.load(place)
        assert same(weights(loaded), weights(result.model))
        assert loaded.provenance == pruned.provenance and not loaded.training
    assert not same(weights(result.model), weights(pruned))


def test_what_is_not_asked_for_follows_the_training(run, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        tuning.FinetuneLoop, "run", lambda self, *_: seen.append(self.recipe) or stop()
    )

    def stop():
        raise ValueError("enough")

    for asked in ({"epochs": 3}, None, FinetuneRecipe(epochs=2)):
        with pytest.raises(ValueError, match="enough"):
            finetune(run, recipe=asked, out=run / str(len(seen)))
    trained = [(each.epochs, each.batch_size, each.learning_rate) for each in seen]
    assert trained == [(3, 32, 0.0015), (7, 32, 0.0015), (2, 64, 5e-4)]
    assert yaml.safe_load((run / "1" / "recipe.yaml").read_text()) == seen[1].to_dict()


def test_the_same_seed_gives_the_same_weights(pruned, teacher, splits, short) -> None:
    asked = {"augmentation": {"shift": 1}, **short}
    before, theirs = weights(pruned), weights(teacher)
    found = []
    for disturbance, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(disturbance)
        found.append(finetune(pruned, teacher=teacher, data=splits, recipe=asked | {"seed": seed}))
    assert found[0].record.loss == found[1].record.loss != found[2].record.loss
    assert same(weights(found[0].model), weights(found[1].model))
    assert same(weights(pruned), before) and same(weights(teacher), theirs)
    assert all(p.requires_grad for p in teacher.parameters())


def test_never_worse_than_before(pruned, teacher, splits, short, monkeypatch) -> None:
    scores = iter([0.5, 0.25, 0.375])
    judged = tuning.FinetuneLoop.score

    def scripted(self, model, part, stage=""):
        real = judged(self, model, part, stage)
        if part == "selection" and model is self.student:
            return dataclasses.replace(real, accuracy=next(scores))
        return real

    monkeypatch.setattr(tuning.FinetuneLoop, "score", scripted)
    result = finetune(pruned, teacher=teacher, data=splits, recipe=short)
    assert result.record.selection_accuracy == (0.5, 0.25, 0.375)
    assert result.record.kept_epoch == 0
    assert result.record.after == result.record.before
    assert same(weights(result.model), weights(pruned))


def test_the_test_set_is_read_at_the_end_only(pruned, teacher, splits, short, monkeypatch) -> None:
    read = []
    judged = tuning.FinetuneLoop.score

    def watched(self, model, part, stage=""):
        read.append((part, len(self.loop.losses)))
        return judged(self, model, part, stage)

    monkeypatch.setattr(tuning.FinetuneLoop, "score", watched)
    finetune(pruned, teacher=teacher, data=splits, recipe=short)
    assert [epochs for part, epochs in read if part == "test"] == [2, 2, 2]


def test_every_stage_counts_up_once(pruned, teacher, splits, short) -> None:
    told = []
    finetune(
        pruned, teacher=teacher, data=splits, recipe=short, batch_size=8,
        progress=lambda *call: told.append(call),
    )  # fmt: skip
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["measuring", "fine-tuning"] and len(stages) == 6
    for each in stages:
        counts = [done for stage, done, _ in told if stage == each]
        assert counts == sorted(set(counts)) and len(counts) > 1


def test_without_distillation_no_teacher_is_asked(run, short, monkeypatch) -> None:
    monkeypatch.setattr("primesvt.training.finetune_source._original", None)
    record = finetune(run, recipe=short | {"distillation": 0}).record
    assert record.unpruned is None and record.context["teacher"] is None
    assert len(record.loss) == 2


def test_block_outputs_and_bfloat16(pruned, teacher, splits, short) -> None:
    asked = short | {"feature_weight": 1.0, "epochs": 1}
    exact = finetune(pruned, teacher=teacher, data=splits, recipe=asked)
    rounded = finetune(pruned, teacher=teacher, data=splits, recipe=asked | {"precision": "bf16"})
    assert exact.record.loss[0] == pytest.approx(rounded.record.loss[0], rel=0.2)
    assert exact.record.loss != rounded.record.loss
    assert rounded.record.context["precision"] == "bf16"
    assert all(value.dtype != torch.bfloat16 for value in rounded.model.state_dict().values())


class OwnNet(nn.Module):
    """A spiking network that no registry knows; its neurons are not reset by it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.lif = neuron.LIFNode(v_threshold=0.3)
        self.fc1, self.act, self.fc2 = nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.lif(self.norm(self.conv(x)))
        return self.fc2(self.act(self.fc1(spikes.flatten(1))))


@pytest.fixture(scope="module")
def own(splits):
    """A network that no registry knows, unpruned and pruned."""
    torch.manual_seed(0)
    net = OwnNet().eval()
    images = torch.stack([splits.selection[i][0] for i in range(16)])
    result = prune(
        net,
        score=lambda model: (model(images), torch.ones(16))[1],
        constraints=Constraints(max_accuracy_drop=0.5, min_memory_saving=None),
        include=["fc1"],
        rates=(0.5,),
        preset="paper",
    )
    assert result.plan.steps
    return net, result


def test_a_network_of_ones_own(own, splits, short, tmp_path) -> None:
    net, pruned = own
    result = finetune(
        pruned.model, teacher=net, data=splits, recipe=short, plan=pruned.plan, out=tmp_path / "out"
    )
    assert result.record.context["teacher"] == model_digest(net)
    again = primesvt.load(tmp_path / "out", into=copy.deepcopy(net))
    assert same(weights(again), weights(result.model))
    finished = finetune(
        pruned.model, teacher=net, data=splits, recipe=short, plan=pruned.plan, out=tmp_path / "out"
    )
    assert finished.record == result.record
    assert same(weights(finished.model), weights(result.model))


class KeptMembrane(nn.Module):
    """A neuron of one's own, which keeps its membrane between forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.mem: Any = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.mem, torch.Tensor) and self.mem.shape != x.shape:
            self.mem = 0.0
        self.mem = self.mem * 0.5 + x
        return self.mem.sigmoid()


def test_a_membrane_that_stays_is_put_back_before_every_step(own, splits, short) -> None:
    """Else the second step would go back through the graph of the first."""
    net = copy.deepcopy(own[0])
    net.lif = KeptMembrane()
    result = finetune(net, teacher=net, data=splits, recipe=short | {"learning_rate": 1e-9})
    assert result.record.unpruned == result.record.before
    assert net.lif.mem == 0.0 and result.model.lif.mem == 0.0


def test_a_run_of_ones_own_network(own, splits, short, tmp_path) -> None:
    net, pruned = own
    pruned.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"was made in Python and names no model and data"):
        finetune(tmp_path / "run", recipe=short)
    with pytest.raises(
        ValueError, match=r"a network of your own; use primesvt\.finetune in Python"
    ):
        finetune(tmp_path / "run", recipe=short, teacher="sdt_v2_digits", data=splits)
    result = finetune(tmp_path / "run", recipe=short, teacher=net, data=splits)
    again = primesvt.load(tmp_path / "run" / "finetuned", into=copy.deepcopy(net))
    assert same(weights(again), weights(result.model))


def test_a_registry_network_needs_no_plan_to_load_again(
    pruned, teacher, splits, short, tmp_path
) -> None:
    result = finetune(pruned, teacher=teacher, data=splits, recipe=short, out=tmp_path / "out")
    assert same(weights(primesvt.load(tmp_path / "out")), weights(result.model))


def test_what_is_missing_is_named(own, pruned, teacher, splits, short, tmp_path) -> None:
    net, cut = own
    with pytest.raises(ValueError, match=r"give plan=result\.plan"):
        finetune(cut.model, teacher=net, data=splits, recipe=short, out=tmp_path / "out")
    with pytest.raises(ValueError, match="distillation needs the unpruned model"):
        finetune(pruned, data=splits, recipe=short)
    with pytest.raises(ValueError, match="no data given"):
        finetune(pruned, teacher=teacher, recipe=short)
    without = dataclasses.replace(splits, train=None)
    with pytest.raises(ValueError, match="has no training images; give data with a train part"):
        finetune(pruned, teacher=teacher, data=without, recipe=short)
    frozen = copy.deepcopy(pruned).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model may be trained"):
        finetune(frozen, teacher=teacher, data=splits, recipe=short)
    with pytest.raises(ValueError, match="save_every is -1, but must be at least 0"):
        finetune(
            pruned, teacher=teacher, data=splits, recipe=short, save_every=-1, out=tmp_path / "out"
        )


def test_a_folder_that_is_no_finished_run(run, short) -> None:
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"is no finished run: it has no metrics\.json"):
        finetune(run, recipe=short)
    with pytest.raises(ValueError, match=r"is no finished run: it has no recipe\.yaml"):
        finetune(run / "gone", recipe=short)


def test_a_teacher_that_has_changed_since(run, short, tmp_path) -> None:
    save_model(create_model("sdt_v2_digits"), tmp_path / "other")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"] = str(tmp_path / "other")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=r"has changed since .* pruned it"):
        finetune(run, recipe=short)
    recipe["model"] = "gone.pth"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="or give the unpruned model with --teacher"):
        finetune(run, recipe=short)
    assert len(finetune(run, recipe=short, teacher="sdt_v2_digits").record.loss) == 2


def test_a_diverging_loss_says_what_to_change(pruned, teacher, splits, short) -> None:
    asked = short | {"learning_rate": 1e30, "gradient_clip": None, "epochs": 3}
    with pytest.raises(ValueError, match="lower learning_rate"):
        finetune(pruned, teacher=teacher, data=splits, recipe=asked)


def test_batches_that_mix_are_told(splits, short) -> None:
    torch.manual_seed(0)
    mixed = create_model("qkformer_digits")
    few = dataclasses.replace(splits, train=Subset(splits.train, range(32)))
    asked = short | {"distillation": 0, "epochs": 1}
    notes = finetune(mixed, data=few, recipe=asked, batch_size=10).record.notes
    assert [note.partition(": ")[2] for note in notes] == [
        "trained in batches of 16 in each process.",
        "evaluated in batches of 10, in a fixed order; the last batch of the selection set has 6.",
    ]


class Counted(OwnNet):
    """Keeps a number in its state dict that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.version = {"name": "seventh", "number": 7}

    def get_extra_state(self) -> Any:
        return self.version

    def set_extra_state(self, state: Any) -> None:
        self.version = dict(state)


def test_extra_state_is_kept(splits, short, tmp_path) -> None:
    torch.manual_seed(0)
    net = Counted().eval()
    images = torch.stack([splits.selection[i][0] for i in range(16)])
    pruned = prune(
        net,
        score=lambda model: (model(images), torch.ones(16))[1],
        max_accuracy_drop=0.5,
        include=["fc1"],
        rates=(0.5,),
        preset="paper",
    )
    pruned.save(tmp_path / "run")
    result = finetune(tmp_path / "run", recipe=short, teacher=net, data=splits)
    fresh = Counted()
    fresh.version = {}
    again = primesvt.load(tmp_path / "run" / "finetuned", into=fresh)
    assert again.version == result.model.version == net.version
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.parameters(), result.model.parameters(), strict=True)
    )
