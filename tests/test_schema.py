"""The JSON Schema, and that what a configuration can name agrees with torch."""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from torch import nn

from gdtrain.config.build import LOADERS, OPTIMIZERS, REDUCTIONS
from gdtrain.config.build_data import READERS
from gdtrain.config.build_loss import LOSSES
from gdtrain.config.build_model import MODELS
from gdtrain.config.json_schema import json_schema
from gdtrain.config.schema import Config
from gdtrain.config.sections import corrections, data, loaders, losses, models, updates
from gdtrain.training import schedules
from gdtrain.training.models import ACTIVATIONS

ROOT = Path(__file__).parent.parent
SCHEMA = json_schema()
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def errors(value: Any, schema: Any, at: str = "$") -> list[str]:
    """What a small reading of JSON Schema 2020-12 has against a value.

    It knows the keywords that pydantic writes for our configuration; test_keywords_are_known
    makes sure that there are no others.
    """
    if "$ref" in schema:
        return errors(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)
    found = []
    if "anyOf" in schema and all(errors(value, option, at) for option in schema["anyOf"]):
        found.append(f"{at}: fits no form")
    if "oneOf" in schema and sum(not errors(value, option, at) for option in schema["oneOf"]) != 1:
        found.append(f"{at}: does not fit exactly one form")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: is not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: is not among {schema['enum']}")
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if "type" in schema and not kinds[schema["type"]]:
        return [*found, f"{at}: is not of type {schema['type']}"]
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{at}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in schema["properties"]:
                found += errors(item, schema["properties"][key], f"{at}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{at}.{key}: unknown")
    if isinstance(value, list):
        found += [f"{at}: too short"] * (len(value) < schema.get("minItems", 0))
        found += [f"{at}: too long"] * (len(value) > schema.get("maxItems", len(value)))
        for i, item in enumerate(value):
            found += errors(item, schema.get("items", {}), f"{at}[{i}]")
    if isinstance(value, str):
        found += [f"{at}: too short"] * (len(value) < schema.get("minLength", 0))
        found += [f"{at}: too long"] * (len(value) > schema.get("maxLength", len(value)))
        found += [f"{at}: no match"] * (not re.search(schema.get("pattern", ""), value))
    if kinds["number"]:
        found += [f"{at}: too small"] * (value < schema.get("minimum", value))
        found += [f"{at}: too large"] * (value > schema.get("maximum", value))
        found += [f"{at}: too small"] * (value <= schema.get("exclusiveMinimum", value - 1))
        found += [f"{at}: too large"] * (value >= schema.get("exclusiveMaximum", value + 1))
    return found


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
    assert set(SCHEMA["required"]) == {"data", "model", "loss", "loader", "optimizer", "epochs"}


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


def tag_of(model: Any) -> str:
    field = model.model_fields.get("name") or model.model_fields["source"]
    return get_args(field.annotation)[0]


@pytest.mark.parametrize(
    ("union", "table"),
    [
        (losses.Loss, LOSSES),
        (models.Model, MODELS),
        (data.Source, [*READERS, "stream"]),
        (get_args(loaders.Form)[0], LOADERS),
        (get_args(corrections.VarianceReductionSection)[0], REDUCTIONS),
        (get_args(updates.OptimizerSection)[0], [*OPTIMIZERS, "lbfgs"]),
    ],
)
def test_every_name_can_be_built(union, table):
    assert {tag_of(model) for model in get_args(union)} == set(table)


def test_every_schedule_can_be_built():
    for section in get_args(get_args(updates.ScheduleSection)[0]):
        options = set(section.model_fields) - {"name", "per", "warmup"}
        parameters = set(inspect.signature(getattr(schedules, tag_of(section))).parameters)
        assert parameters == options | ({"total"} if section is updates.Cosine else set())


@pytest.mark.parametrize("section", get_args(losses.Loss), ids=tag_of)
def test_losses_are_those_of_torch_with_their_arguments_and_defaults(section):
    loss = LOSSES[tag_of(section)]
    assert loss is getattr(nn, loss.__name__)
    assert loss.__name__.lower() == tag_of(section).replace("_", "") + "loss"
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
    offered = {loss.__name__ for loss in LOSSES.values()}
    there = {name for name in vars(nn) if re.search(r"Loss(2d)?$", name)}
    assert there - offered <= set(special)


def test_activations_are_those_of_torch():
    assert set(get_args(models.Activation)) == set(ACTIVATIONS)
    for name, activation in ACTIVATIONS.items():
        assert activation is getattr(nn, activation.__name__)
        assert activation.__name__.lower() == name.replace("_", "")
