"""What a person sees: a bar on a terminal, plain lines elsewhere, and not too many of them."""

import contextlib
import io
import os
import termios
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, PhasedLoader, Trainer
from gdtrain.data.loaders.loader import Loader
from gdtrain.output.console import ProgressBar

DATA = (torch.ones(7, 1), torch.ones(7, 1))


def train(stream, epochs: int, max_lines: int = 50, loader: Loader | None = None) -> None:
    model = nn.Linear(1, 1)
    Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        loader or MiniBatchLoader(DATA, batch_size=3),
        device="cpu",
        callbacks=[ProgressBar(stream, max_lines)],
    ).fit(epochs)


def shown_epochs(text: str) -> list[str]:
    return [line.partition("  train_loss")[0].split()[-1] for line in text.splitlines()]


def test_a_stream_that_is_no_terminal_gets_one_line_an_epoch():
    stream = io.StringIO()
    train(stream, epochs=3)
    assert shown_epochs(stream.getvalue()) == ["1/3", "2/3", "3/3"]
    assert "\r" not in stream.getvalue()


def test_a_long_run_gets_few_lines_in_equal_distances_and_the_last():
    stream = io.StringIO()
    train(stream, epochs=11, max_lines=3)
    assert shown_epochs(stream.getvalue()) == ["4/11", "8/11", "11/11"]


def read_to_the_end(controller: int) -> str:
    """All that a terminal shows. One read gets what has arrived so far: the kernel hands it on."""
    text = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed and all of it is read
        while part := os.read(controller, 1 << 16):
            text += part
    os.close(controller)
    return text.decode()


def shown_on_a_terminal(epochs: int, loader: Loader | None = None) -> str:
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with ThreadPoolExecutor(1) as readers:
        screen = readers.submit(read_to_the_end, controller)
        with os.fdopen(terminal, "w") as stream:
            train(stream, epochs, loader=loader)
        return screen.result()


def test_the_bar_is_as_long_as_all_phases_together():
    loader = PhasedLoader([(1, MiniBatchLoader(DATA, batch_size=3)), (None, BatchLoader(DATA))])
    assert "/5 [" in shown_on_a_terminal(epochs=3, loader=loader)  # 3 updates, then 1 and 1


def test_a_terminal_gets_a_bar_with_loss_lr_and_speed_that_is_taken_away_again():
    text = shown_on_a_terminal(epochs=2)
    assert "/6 [" in text  # 2 epochs of 3 updates
    assert all(word in text for word in ("loss ", "lr 0.1", "samples/s", "step/s"))
    assert "epoch 1/2  train_loss" in text
    assert text.split("\r")[-1].strip() == ""  # nothing of the bar is left
