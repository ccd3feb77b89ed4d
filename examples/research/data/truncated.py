"""Back-propagation through time, truncated: the hidden state goes on from batch to batch."""

from torch.nn import functional as F
from torch.optim import Adam

from gdtrain import MiniBatchLoader, Trainer

SERIES, EPOCHS = 4, 3


def following(outputs, window):
    """How well each output foretells what comes next."""
    return F.mse_loss(outputs[:, :-1], window[:, 1:])


def trainer_of(model, windows):
    """windows: of SERIES series at a time, each where the one SERIES before it ended."""

    def of_window(trainer, batch):
        carried = trainer.hidden if trainer.progress.step_in_epoch else None
        outputs, hidden = trainer.model(batch.inputs, carried)
        trainer.hidden = hidden.detach()
        return following(outputs, batch.inputs)

    trainer = Trainer(
        model,
        optimizer=Adam(model.parameters()),
        loader=MiniBatchLoader(windows, SERIES, order="sequential"),
        compute_loss=of_window,
    )
    trainer.register_state("hidden", None)  # saved and resumed with the rest
    return trainer


def with_gdtrain(model, windows):
    trainer_of(model, windows).fit(EPOCHS)


def by_hand(model, windows):
    optimizer = Adam(model.parameters())
    for _ in range(EPOCHS):
        hidden = None
        for window in windows.split(SERIES):
            optimizer.zero_grad()
            outputs, hidden = model(window, hidden)
            loss = following(outputs, window)
            loss.backward()
            optimizer.step()
            hidden = hidden.detach()
