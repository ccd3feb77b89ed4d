"""Rare positives: weighed in the loss, and judged by F1 and the area under the ROC curve."""

import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 16, 3


def weighed(y):
    """Positives count as often as there are negatives for each."""
    return nn.BCEWithLogitsLoss(pos_weight=(1 - y).sum() / y.sum())


def with_gdtrain(model, X, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    trainer = Trainer(model, weighed(y), optimizer, loader, metrics=["f1", "auroc"])
    trainer.fit(EPOCHS)
    return trainer.evaluate()


def by_hand(model, X, y):
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=0.01), weighed(y)
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
    with torch.no_grad():
        outputs = model(X)
    found = {"loss": float(loss_of(outputs, y)), "f1": f1_score(y, outputs > 0)}
    return {**found, "auroc": roc_auc_score(y, outputs)}
