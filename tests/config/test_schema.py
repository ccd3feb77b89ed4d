"""The JSON Schema, and that what a configuration can name agrees with torch."""

import inspect
import json
import re
from typing import Any, get_args

import pytest
import yaml
from helpers.hostile.schema_errors import SCHEMA, errors
from helpers.paths import ROOT
from torch import nn

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.training.models import ACTIVATIONS, Activation

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_keywords_are_known():
    known = {
        *("$schema", "$defs", "$ref", "title", "description", "default", "type", "properties"),
        *("required", "additionalProperties", "items", "minItems", "anyOf", "oneOf", "const"),
        *("maxItems", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "discriminator"),
    }

    def keywords(schema: dict[str, Any]) -> set[str]:
        inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
        inner += [*schema.get("anyOf", []), *schema.get("oneOf", []), schema.get("items", {})]
        return set(schema).union(*map(keywords, [part for part in inner if part]))

    assert keywords(SCHEMA) <= known


def test_the_schema_is_json_of_the_2020_12_dialect():
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["additionalProperties"] is False
    assert set(SCHEMA["properties"]) == set(Config.model_fields)
    assert set(SCHEMA["required"]) == {"data", "model", "loss", "loader", "epochs"}
    assert SCHEMA["anyOf"] == [{"required": ["optimizer"]}, {"required": ["phases"]}]


def test_every_setting_is_described():
    def described(setting: dict[str, Any]) -> bool:
        # Where setting and section are described in the same words, pydantic keeps the latter.
        section = SCHEMA["$defs"].get(setting.get("$ref", "").removeprefix("#/$defs/"), {})
        return bool(setting.get("description") or section.get("description"))

    bare = [
        f"{name}.{key}"
        for name, section in [("Config", SCHEMA), *SCHEMA["$defs"].items()]
        for key, setting in section["properties"].items()
        if key not in ("name", "source") and not described(setting)
    ]
    assert bare == []
    assert [n for n, section in SCHEMA["$defs"].items() if not section.get("description")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_fit_the_schema_and_tell_editors_of_it(path):
    text = path.read_text("utf-8")
    assert errors(yaml.safe_load(text), SCHEMA) == []
    assert text.startswith("# yaml-language-server: $schema=")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"loss": "mse", "data": "digits"}, []),
        ({"loader": "sample", "optimizer": "adam"}, []),
        ({"optimizer": {"lr": 0.1}}, []),
        ({"seed": -1}, ["$.seed: too small"]),
        ({"epochs": "2"}, ["$.epochs: is not of type integer"]),
        ({"epoch": 2}, ["$.epoch: unknown"]),
        ({"loss": "msee"}, ["$.loss: fits no form"]),
        ({"model": {"name": "mlp", "hiden": [3]}}, ["$.model: fits no form"]),
        ({"device": "gpu"}, ["$.device: no match"]),
    ],
)
def test_the_schema_takes_and_refuses_what_the_program_does(changes, found):
    valid = yaml.safe_load((ROOT / "configs/minibatch.yaml").read_text("utf-8"))
    assert errors(valid | changes, SCHEMA) == found


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
)
def test_every_name_is_registered_where_the_index_says(kind, name):
    part = registry.find(kind, name)
    entry = registry.index()[kind][name]
    assert (part.name, part.home, part.summary) == (name, entry["module"], entry["description"])
    options = set(part.settings.model_fields) - {part.kind.tag, *part.kind.base.model_fields}
    parameters = inspect.signature(part.part).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        assert options <= set(parameters)


# model: the loss that the model computes.
LOSSES = {n: registry.find("loss", n) for n in registry.names("loss") if n != "model"}
# Not torch.nn's own: the loss is made by a class of the project's.
OWN = {"bce": nn.BCELoss, "kl_div": nn.KLDivLoss}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_torch_with_their_arguments_and_defaults(name):
    loss, section = OWN.get(name, LOSSES[name].part), LOSSES[name].settings
    assert loss is getattr(nn, loss.__name__)
    assert loss.__name__.lower() == name.replace("_", "") + "loss"
    known = inspect.signature(loss).parameters
    taken = set(section.model_fields) - {"name"}
    # `reduction` is the mean where one batch is one update; the other two are deprecated.
    assert set(known) - {"reduction", "size_average", "reduce"} == taken - {"reduction"}
    for name in taken - {"reduction"}:
        assert section.model_fields[name].default == known[name].default


def test_torch_losses_that_are_left_out_take_more_than_output_and_targets():
    """Every loss of torch.nn is either offered, or has a reason here not to be."""
    special = {
        "AdaptiveLogSoftmaxWithLoss": "holds the last layer, and returns a pair",
        "CTCLoss": "takes lengths",
        "CosineEmbeddingLoss": "takes two outputs",
        "GaussianNLLLoss": "takes a variance",
        "LinearCrossEntropyLoss": "holds the last layer",
        "MarginRankingLoss": "takes two outputs",
        "TripletMarginLoss": "takes three outputs",
        "TripletMarginWithDistanceLoss": "takes three outputs",
        "NLLLoss2d": "deprecated",
    }
    offered = {OWN.get(name, loss.part).__name__ for name, loss in LOSSES.items()}
    there = {name for name in vars(nn) if re.search(r"Loss(2d)?$", name)}
    assert there - offered <= set(special)


def test_activations_are_those_of_torch():
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    for name, activation in ACTIVATIONS.items():
        assert activation is getattr(nn, activation.__name__)
        assert activation.__name__.lower() == name.replace("_", "")
