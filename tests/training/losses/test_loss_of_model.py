"""Models that are called with named inputs and give their loss, as Hugging Face's do."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import BatchLoader, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError, ModelError

IDS = torch.randint(0, 9, (14, 5), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(14, 5, dtype=torch.long)
LABELS = IDS[:, 0] % 3


@dataclass
class Fields:
    """Outputs as a dataclass."""

    logits: Tensor
    loss: Tensor | None = None


class ModelOutput(OrderedDict):
    """Outputs that are a mapping, with its items as attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def mapping(logits, loss=None):
    return ModelOutput({"logits": logits} | ({} if loss is None else {"loss": loss}))


class Classifier(nn.Module):
    """Follows transformers' convention; ``labels`` may be left out."""

    def __init__(self, kind=mapping):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.kind = nn.Embedding(9, 4), nn.Linear(4, 3), kind

    def forward(self, input_ids, attention_mask=None, labels=None):
        words = self.embedding(input_ids) * attention_mask[..., None]
        logits = self.head(words.mean(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return self.kind(logits=logits, loss=loss)


DATA = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}


@pytest.mark.parametrize("kind", [mapping, Fields])
def test_a_run_has_the_bits_of_the_plain_loop(kind):
    model, loader = Classifier(kind), MiniBatchLoader(DATA, 4)
    hand = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer = Trainer(
        *(model, "model", optimizer, loader),
        validation=BatchLoader(DATA),
        metrics=["accuracy"],
        device="cpu",
    )
    history = trainer.fit(3)
    optimizer = torch.optim.AdamW(hand.parameters(), lr=0.01)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            hand(**batch.inputs).loss.backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        outputs = hand(**DATA)
    assert history.val_loss[-1] == pytest.approx(float(outputs.loss), rel=1e-6)
    right = (outputs.logits.argmax(1) == LABELS).double().mean()
    assert history.val_accuracy[-1] == float(right)


def test_predictions_keep_what_the_model_gives():
    model = Classifier()
    trainer = Trainer(model, "model", "adam", BatchLoader(DATA), device="cpu")
    given = {name: DATA[name] for name in ("input_ids", "attention_mask")}
    predicted = trainer.predict(given)
    assert torch.equal(predicted["logits"], model(**given)["logits"])


def test_what_has_no_loss_is_refused():
    given = {name: DATA[name] for name in ("input_ids", "attention_mask")}
    model = Classifier()
    with pytest.raises(ModelError, match="loss: the model gives a ModelOutput without a loss; giv"):
        Trainer(model, "model", "adam", BatchLoader(given), device="cpu").fit(1)
    with pytest.raises(ModelError, match="loss: model takes data without targets; put them among"):
        Trainer(model, "model", "adam", BatchLoader((DATA, LABELS)), device="cpu").fit(1)


def test_a_loss_whose_divisor_is_not_known_is_cut_where_that_is_said():
    def trained(kind, **options):
        model = Classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kind(model, "model", optimizer, BatchLoader(DATA), device="cpu", **options).fit(2)
        return model.head.weight

    with pytest.raises(ConfigError, match="loss_weight: missing: batches are cut"):
        trained(Trainer, microbatch_size=4)

    class OverSamples(Trainer):
        def loss_weight(self, batch):
            return len(batch)

    assert torch.allclose(trained(OverSamples, microbatch_size=4), trained(Trainer), atol=1e-6)
