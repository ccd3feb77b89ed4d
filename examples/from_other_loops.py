"""One training, four times: by a plain PyTorch loop, by Lightning, by skorch, and by gdtrain.

Each takes a model, inputs X [n, 3] and targets y [n, 1], and trains the model in place for EPOCHS
epochs in batches of BATCH, in the data's own order. All four end with the same bits.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS, LR = 16, 5, 0.1


def by_hand(model: nn.Module, X: Tensor, y: Tensor) -> None:
    loss_of = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for _ in range(EPOCHS):
        for inputs, targets in DataLoader(TensorDataset(X, y), batch_size=BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()


def by_lightning(model: nn.Module, X: Tensor, y: Tensor) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            inputs, targets = batch
            return nn.functional.mse_loss(self.model(inputs), targets)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(X, y), batch_size=BATCH))


def by_skorch(model: nn.Module, X: Tensor, y: Tensor) -> None:
    import skorch

    net = skorch.NeuralNet(
        model, criterion=nn.MSELoss, optimizer=torch.optim.SGD, optimizer__momentum=0.9,
        lr=LR, batch_size=BATCH, max_epochs=EPOCHS, train_split=None, verbose=0,
    )  # fmt: skip
    net.initialize()
    net.partial_fit(X, y)
    model.load_state_dict(net.module_.state_dict())  # skorch may train a copy


def by_gdtrain(model: nn.Module, X: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    loader = MiniBatchLoader((X, y), batch_size=BATCH, order="sequential")
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu").fit(EPOCHS)
