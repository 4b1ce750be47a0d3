"""Fine-tuning by two processes: the counts of one, steps shared, one of them writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primesvt import finetune

from ...two_processes import run_twice

RECIPE = {"epochs": 2, "batch_size": 16, "learning_rate": 0.005, "augmentation": {"shift": 1}}

SCRIPT = """
from primesvt import _files, finetune
from primesvt.cli import main
from primesvt.models.digest import model_digest
from primesvt.training import TrainRecipe, train

written = []
def write(path, content, real=_files.write_bytes):
    written.append(str(path))
    return real(path, content)
_files.write_bytes = write

run, out, stopped, recipe, data = sys.argv[2:]
told = []
result = finetune(
    run, out=out, recipe=json.loads(recipe), save_every=0, progress=lambda *call: told.append(call)
)
again = finetune(run, out=stopped, recipe=json.loads(recipe))
code = main(["finetune", run, "--out", out, "--recipe", f"{out}/recipe.yaml"])
evaluated = main(["evaluate", out, "--data", data, "--batch-size", "8", "--json"])
refused = main(["finetune", run, "--out", f"{out}-other", "--batch-size", "15"])
fresh = train(TrainRecipe(data=data, epochs=1, batch_size=16), out_dir=f"{out}-fresh")
answer({
    "trained": [fresh.loss, fresh.selection_accuracy, fresh.notes],
    "record": result.record.to_dict(),
    "weights": model_digest(result.model),
    "again": again.record.to_dict(),
    "written": written,
    "told": len(told),
    "codes": [code, evaluated, refused],
})
print("rank", RANK, "said nothing else" if RANK else "spoke")
"""


@pytest.fixture(scope="module")
def alone(_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone") / "out"
    return json.loads(json.dumps(finetune(_run, out=out, recipe=RECIPE).record.to_dict()))


@pytest.fixture(scope="module")
def both(_run: Path, bars: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fine-tuning", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(_run, out=folder / "stopped", recipe=RECIPE, save_every=0, progress=interrupt)
    words = [str(_run), str(folder / "out"), str(folder / "stopped"), json.dumps(RECIPE)]
    words.append(str(bars))
    return run_twice(SCRIPT, folder / "script", *words)


def test_networks_are_measured_as_by_one(alone, both) -> None:
    for found in both:
        record = found["record"]
        assert record["before"] == alone["before"]
        assert record["unpruned"] == alone["unpruned"]
        assert record["selection_accuracy"][0] == alone["selection_accuracy"][0]
        for part, images in (("selection", 16), ("test", 20)):
            assert record[part]["images"] == images
            correct = record[part]["accuracy"] * images
            assert correct == pytest.approx(round(correct))


def test_both_learn_the_same(alone, both) -> None:
    records = [found["record"] for found in both]
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]
    assert both[0]["weights"] == both[1]["weights"]
    assert records[0]["processes"] == 2
    assert records[0]["notes"][0].startswith("2 processes shared every batch")
    # Batch norms see half a batch each, so the steps are alike and not the same.
    assert records[0]["loss"] == pytest.approx(alone["loss"], rel=0.3)
    assert records[0]["loss"][1] < records[0]["loss"][0]


def test_the_first_writes_and_speaks_alone(both) -> None:
    assert both[1]["written"] == [] and both[1]["told"] == 0
    names = {Path(path).name for path in both[0]["written"]}
    assert names >= {"state.safetensors", "record.json", "model.safetensors", "recipe.yaml"}
    assert both[0]["told"] > 8


def test_two_go_on_where_one_was_stopped(both) -> None:
    for found in both:
        again = found["again"]
        assert len(again["loss"]) == 2
        assert again["notes"][1] == "Begun with 1 process(es), gone on with 2."


def test_the_command_is_the_same(both) -> None:
    """The finished one is shown again; a batch that cannot be shared is a mistake."""
    assert [found["codes"] for found in both] == [[0, 0, 1]] * 2


def test_training_is_shared_too(both) -> None:
    assert both[0]["trained"] == both[1]["trained"]
    loss, accuracies, notes = both[0]["trained"]
    assert len(loss) == len(accuracies) == 1 and notes[0].startswith("2 processes shared")
    assert any(path.endswith("-fresh/record.json") for path in both[0]["written"])
