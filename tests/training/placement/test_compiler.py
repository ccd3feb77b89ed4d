"""Optimizers are made without torch's compiler, and are the same as with it."""

import pytest
import torch
from helpers import processes

PROGRAM = """
import sys, torch
from gdtrain.training.placement.compiler_import import leave_compiler_out
if {out}:
    leave_compiler_out()
model = torch.nn.Linear(2, 1)
with torch.no_grad():
    model.weight.fill_(0.5)
    model.bias.fill_(0.25)
optimizer = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
optimizer.add_param_group({{"params": [model.bias], "lr": 0.2}})
optimizer.zero_grad()
state = optimizer.state_dict()
optimizer.load_state_dict(state)
there = "torch._dynamo" in sys.modules
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
print(there, model.weight.tolist(), model.bias.tolist(), optimizer.state_dict()["param_groups"])
"""


def run(out: bool) -> str:
    done = processes.run("-c", PROGRAM.format(out=out))
    assert done.returncode == 0, done.err
    return done.out


def test_the_compiler_is_not_imported_and_updates_are_the_same() -> None:
    without = run(out=True)
    assert without.startswith("False ")
    assert without.split(maxsplit=1)[1] == run(out=False).split(maxsplit=1)[1]


IMPORTED = """
import sys, torch
from torch import nn
from gdtrain import MiniBatchLoader, Trainer
from gdtrain.training.callbacks.callback import Callback

class Look(Callback):
    def on_epoch_start(self, trainer):
        print("torch._dynamo" in sys.modules)

model = nn.Linear(2, 1)
optimizer = {optimizer}
print("torch._dynamo" in sys.modules)
data = torch.ones(6, 2), torch.ones(6, 1)
trainer = Trainer(model, nn.MSELoss(), optimizer, MiniBatchLoader(data, 2), engine="eager")
trainer.callbacks.append(Look())
trainer.fit(1)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(
    ("optimizer", "imported"),
    [
        ("torch.optim.SGD(model.parameters(), lr=0.1)", False),
        ("torch.optim.Adam(model.parameters(), lr=0.1)", False),
        ("torch.optim.RMSprop(model.parameters(), lr=0.1)", True),
        ("{'all': torch.optim.RMSprop(model.parameters(), lr=0.1)}", True),
    ],
)
def test_what_a_step_imports_is_imported_before_the_first_block(
    optimizer: str, imported: bool
) -> None:
    done = processes.run("-c", IMPORTED.format(optimizer=optimizer))
    assert done.returncode == 0, done.err
    assert done.out.split() == ["False", str(imported), str(imported)]


RESUMED = """
import sys, torch
from torch import nn
from gdtrain import MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import Checkpoints

def trainer():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    data = torch.ones(6, 2), torch.ones(6, 1)
    optimizer = torch.optim.{optimizer}
    return Trainer(model, nn.MSELoss(), optimizer, MiniBatchLoader(data, 2), engine="eager",
                   callbacks=[Checkpoints("kept")])

trainer().fit(1)
trainer().fit(2, resume="kept")
print("torch._dynamo" in sys.modules)
"""


# Whose steps need no import of the compiler; torch 2.6 has an AdamW that is none of them.
KNOWN = torch.optim.SGD, torch.optim.Adam


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_an_update_that_tries_a_saved_state_imports_nothing(optimizer: str, tmp_path) -> None:
    made = f"{optimizer}(model.parameters(), lr=0.1)"
    done = processes.run("-c", RESUMED.format(optimizer=made), cwd=tmp_path)
    assert done.returncode == 0, done.err
    imported = not issubclass(getattr(torch.optim, optimizer), KNOWN)
    assert done.out.split() == [str(imported)]


COMPILED = """
import torch
from gdtrain.training.placement.compiler_import import leave_compiler_out
leave_compiler_out()
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.zero_grad()
marked = torch.optim.Optimizer.zero_grad.__wrapped__
ours = vars(marked)["__dynamo_disable"]
import torch._dynamo
optimizer.zero_grad()
print(vars(marked)["__dynamo_disable"] is not ours, torch._dynamo.is_compiling())
"""


def test_once_the_compiler_is_there_torch_marks_the_methods_itself() -> None:
    done = processes.run("-c", COMPILED)
    assert done.returncode == 0, done.err
    assert done.out.split() == ["True", "False"]
