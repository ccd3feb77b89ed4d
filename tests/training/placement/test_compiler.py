"""Optimizers are made without torch's compiler, and are the same as with it."""

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
