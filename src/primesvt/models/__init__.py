"""Spiking vision transformers: one class, families as configs, official checkpoints.

Example:
    >>> from primesvt.models import create_model
    >>> sum(p.numel() for p in create_model("sdt_v2_15m").parameters())
    15112208
"""

from primesvt.data.config import DataConfig
from primesvt.models.config import ModelConfig
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families import build_model
from primesvt.models.families.sdt_v2 import SDTv2Config
from primesvt.models.neurons import IntegerNeuron, lif, plif
from primesvt.models.official.convert import from_official, to_official
from primesvt.models.official.names import official_keys, official_modules
from primesvt.models.provenance import CheckpointReport, Provenance
from primesvt.models.registry import create_model, list_models, listing, model_entry
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import reset
from primesvt.models.state_dict import load_state

__all__ = [
    "CheckpointReport",
    "DataConfig",
    "IntegerNeuron",
    "ModelConfig",
    "ModelEntry",
    "Provenance",
    "Published",
    "SDTv2Config",
    "SpikingViT",
    "build_model",
    "create_model",
    "from_official",
    "lif",
    "list_models",
    "listing",
    "load_state",
    "model_entry",
    "official_keys",
    "official_modules",
    "plif",
    "reset",
    "to_official",
]
