"""Modules of a user's own, with SpikingJelly's neurons."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.utils.data import TensorDataset

from primesvt import export

from .conftest import Loop, Sequence, TimeFirst, awake

CASES = {
    "sequence": (Sequence, lambda: torch.rand(20, 3, 8, 8) * 3, 0, "float32 [batch, 3, 8, 8]"),
    "loop": (Loop, lambda: torch.randn(20, 6) * 3, 0, "float32 [batch, 6]"),
    "time first": (TimeFirst, lambda: torch.randn(4, 20, 6) * 3, 1, "float32 [4, batch, 6]"),
}


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("case", CASES)
def test_modules_with_spiking_neurons(case, format, tmp_path):
    make, inputs, axis, shape = CASES[case]
    torch.manual_seed(0)
    model, x = awake(make()), inputs()
    made = export(model, tmp_path / "file", format=format, example_input=x, batch_axis=axis)
    assert made.path.is_file()
    assert made.input == shape
    assert made.agreement.predictions == 1
    assert made.agreement.equal_spikes == 1
    assert made.agreement.samples == 20
    assert made.agreement.accuracy is None
    assert made.agreement.scale > 0.05


def test_a_neuron_called_often_is_compared_each_time(tmp_path):
    model = awake(Loop())
    x = torch.randn(4, 6) * 3
    made = export(model, tmp_path / "file.pt2", format="torch-export", example_input=x)
    assert list(made.agreement.spikes) == ["lif", "lif#2", "lif#3"]


def test_a_norm_without_a_layer_in_front_is_told(tmp_path):
    x = torch.rand(4, 3, 8, 8)
    made = export(awake(Sequence()), tmp_path / "file.pt2", format="torch-export", example_input=x)
    assert made.notes[0].startswith("1 of 2 batch norms have no layer directly in front")


def test_labelled_data_and_one_sample(tmp_path):
    data = TensorDataset(torch.rand(9, 3, 8, 8), torch.arange(9) % 5)
    model = awake(Sequence())
    made = export(model, tmp_path / "a.pt2", format="torch-export", data={"validation": data})
    assert made.agreement.accuracy is not None
    alone = export(
        model, tmp_path / "b.pt2", format="torch-export", example_input=torch.rand(1, 3, 8, 8)
    )
    assert alone.agreement.samples == 1


class Net(nn.Module):
    """A linear layer and a neuron."""

    def __init__(self, spike=None):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 3), spike or neuron.LIFNode(step_mode="m")

    def forward(self, x):
        return self.lif(self.fc(x)[None])[0]


class Branching(Net):
    def forward(self, x):
        y = self.fc(x)
        return self.lif(y[None])[0] if y.sum() > 0 else y


class Fixed(Net):
    def forward(self, x):
        return self.lif(self.fc(x).reshape(1, 20, 3))[0]


class Named(Net):
    def forward(self, x):
        return {"logits": self.fc(x)}


class Remembering(Net):
    def __init__(self):
        super().__init__()
        self.filter = layer.SynapseFilter()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Branching(), "PyTorch cannot export this model.*must not depend on the values"),
        (Fixed(), r"forward of Fixed fails on an input of shape \[2, 6\]"),
        (Named(), "must give logits.*gave a dict"),
        (Net(neuron.EIFNode(step_mode="m")), "lif is a EIFNode.*LIFNode"),
        (Remembering(), "filter is a SynapseFilter"),
        (neuron.LIFNode(), "a single neuron"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(model, words, tmp_path, capfd):
    with pytest.raises(ValueError, match=words) as caught:
        export(model, tmp_path / "file.onnx", example_input=torch.randn(20, 6))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_what_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="give out="):
        export(awake(Loop()), example_input=torch.randn(4, 6))
    with pytest.raises(ValueError, match="give data= or example_input="):
        export(awake(Loop()), tmp_path / "file.onnx")
    with pytest.raises(ValueError, match="Hub layout is for models of PrimeSVT's families"):
        export(awake(Loop()), tmp_path / "hub", format="hub", example_input=torch.randn(4, 6))
