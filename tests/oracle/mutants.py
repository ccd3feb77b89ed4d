"""Faults put back into a copy of gdtrain, one at a time: how many programs find each?

    PYTHONPATH=tests python -m oracle.mutants [--most 5000] [--seed 0] [NAME …]

Each mutant is one line of the source in another form, as it stood, or might have stood, before the
fault was mended. Only generated programs look for it, in the order of :func:`numbered`: the first
hundred are those of the ordinary suite.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "gdtrain"

SHOWN = 1000  # characters of a difference: PyTorch's errors may have pages
# Of twenty programs in a row; five times that are the shares of the suite.
TURNS = {"exact": 10, "cut": 5, "scan": 3, "ranks": 2}


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``; with ``new`` in its place the fault is back.

    kinds: of programs that look for it; the others are counted and not run, for it can't show in
    them, or they take long and look for little more. also: other places of the same file that
    belong to it.
    """

    name: str
    file: str
    old: str
    new: str
    kinds: tuple[str, ...] = ("exact", "cut", "ranks")
    also: tuple[tuple[str, str], ...] = ()

    def source(self) -> str:
        """The file with the fault. Raises ValueError unless each place stands there once."""
        text = (PACKAGE / self.file).read_text("utf-8")
        for old, new in ((self.old, self.new), *self.also):
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {text.count(old)} times in {self.file}: {old}")
            text = text.replace(old, new)
        return text


EXACT, CUT, RANKS, SCAN = ("exact",), ("cut", "ranks"), ("ranks",), ("scan",)

LISTS_THAT_GO_STALE = (
    Mutant(
        "a frozen layer is moved on by its stale gradient",
        "training/descent.py",
        "            parameter.grad = None\n\n\ndef backward",
        "            if parameter.requires_grad:\n                parameter.grad = None\n\n\n"
        "def backward",
    ),
    Mutant(
        "weights that are bound again get no update",
        "training/descent.py",
        "parameters.append(parameter)",
        "parameters.append(vars(parameter).setdefault('_alias', parameter.detach()))",
    ),
    Mutant(
        "a group without a gradient ends the run",
        "training/descent.py",
        "        if parameters:\n            work.append",
        "        if True:\n            work.append",
    ),
    Mutant(
        "a gradient that is sparse in some batches ends the run",
        "training/safety/finite_guard.py",
        "        if work is not None and (loss is None or loss.dtype in _ONE_KERNEL):\n",
        "        if True:\n",
        also=(
            (
                "            except RuntimeError:  # of gradients that the kernel does not take\n",
                "            except LookupError:\n",
            ),
        ),
    ),
    Mutant(
        "hooks of the optimizer that come later are not called",
        "training/descent.py",
        "        if optimizer._optimizer_step_post_hooks or _global_optimizer_post_hooks:\n",
        "        if vars(optimizer).setdefault(\n"
        "            '_hooked', bool(optimizer._optimizer_step_post_hooks)\n"
        "        ):\n",
    ),
    Mutant(
        "what was looked up for an update outlives a change between two blocks",
        "training/engines/known_update.py",
        "            if self._seen.is_as_before(trainer):\n",
        "            if True:\n",
        EXACT,
    ),
    Mutant(
        "momentum is that of the first update",
        "training/descent.py",
        'momentum, old, new = group["momentum"], [], []',
        "momentum, old, new = vars(optimizer).setdefault('_momentum', group['momentum']), [], []",
    ),
    Mutant(
        "a backward pass in compute_loss is lost",
        "training/gradients/exact.py",
        "        scalar(loss)\n    backward(loss ",
        "        scalar(loss)\n    trainer.updater.zero_grad()\n    backward(loss ",
        EXACT,
    ),
    Mutant(
        "a parameter that is unfrozen later is not guarded",
        "training/safety/finite_guard.py",
        "        if work is None:\n            seen = [",
        "        first = vars(self).setdefault('_first', trained(self.trainer.updater))\n"
        "        if True:\n            seen = [",
        also=(
            (
                "                for group in (of or self.trainer.updater).param_groups\n"
                '                for parameter in group["params"]\n'
                "                if (gradient",
                "                for parameter in first\n                if (gradient",
            ),
            (
                "from gdtrain.training.run import Run\n",
                "from gdtrain.training.gradients.accumulation import trained\n"
                "from gdtrain.training.run import Run\n",
            ),
        ),
    ),
    Mutant(
        "a callback that is added within a block misses its moment",
        "training/engines/eager.py",
        "if trainer.callbacks != callbacks:",
        "if False:",
    ),
    Mutant(
        "callbacks that are added in mid-run are not told",
        "training/trainer.py",
        "        if self._listeners.callbacks != self.callbacks:\n",
        "        if len(self.callbacks) < 0:\n",
    ),
    Mutant(
        "ranks exchange the gradients of what was trained at first",
        "training/placement/exchange.py",
        "self.parameters = list(parameters)",
        "self.parameters = vars(world).setdefault('_first', list(parameters))",
        RANKS,
    ),
    Mutant(
        "sparse gradients are exchanged as dense ones",
        "training/placement/exchange.py",
        "return gradient.layout is not torch.strided",
        "return False",
        RANKS,
    ),
    Mutant(
        "sums in float64 outlive a batch that failed",
        "training/gradients/accumulation.py",
        "        self._sums: dict[Tensor, Tensor] = {}\n",
        "        self._sums: dict[Tensor, Tensor] = vars(optimizer).setdefault('_sums', {})\n",
        CUT,
        also=(
            (
                "            parameter.grad = held.to(parameter.dtype)\n",
                "            parameter.grad = held.to(parameter.dtype)\n"
                "        self._sums.clear()\n",
            ),
        ),
    ),
    Mutant(
        "scan goes on with the step that it captured first",
        "training/engines/xla/scan.py",
        "if self._step is None or samples != self._samples_of_step or not is_current:",
        "if self._step is None or samples != self._samples_of_step:",
        SCAN,
    ),
)

KEEPERS = (
    Mutant(
        "who looks forgets the loss module",
        "training/state/keeper.py",
        "found: list[Any] = [trainer.model, trainer.loss]",
        "found: list[Any] = [trainer.model]",
    ),
    Mutant(
        "the loss module is evaluated in training mode",
        "training/state/keeper.py",
        "                root.train(training)\n",
        "                root.train(training or root is trainer.loss)\n",
    ),
    Mutant(
        "modes stay as a look has left them",
        "training/state/keeper.py",
        "            module.training = mode\n",
        "            module.training = module.training\n",
    ),
    Mutant(
        "a look draws from the run's generator",
        "training/state/keeper.py",
        "        self._kept.restore(self.trainer.device)\n",
        "        self._kept = RngState.take(self.trainer.device)\n",
    ),
    Mutant(
        "buffers that forward has assigned stay after a bad update",
        "training/state/keeper.py",
        "                now.clear()  # and filled in the order that they had\n"
        "                now.update(then)\n",
        "                pass\n",
    ),
    Mutant(
        "buffers stay as a bad update has left them",
        "training/safety/finite_guard.py",
        'self._of_any_pass = Keeper(self.trainer, "buffers", "draws", "own")',
        'self._of_any_pass = Keeper(self.trainer, "draws", "own")',
    ),
    Mutant(
        "random numbers of a bad update are used up",
        "training/safety/finite_guard.py",
        'self._of_any_pass = Keeper(self.trainer, "buffers", "draws", "own")',
        'self._of_any_pass = Keeper(self.trainer, "buffers", "own")',
    ),
    Mutant(
        "what a batch did to buffers before memory ran out stays",
        "training/gradients/exact.py",
        "            before.restore()\n            zero_gradients",
        "            zero_gradients",
        CUT,
    ),
    Mutant(
        "a model that works in place is given its own work again",
        "training/gradients/exact.py",
        "        part = part.copy()\n",
        "",
        CUT,
    ),
    Mutant(
        "a model that works in place rewrites the data set",
        "training/trainer.py",
        "if batch.is_view or self.microbatches.is_auto:",
        "if self.microbatches.is_auto:",
        EXACT,
    ),
)

COUNTERS = (
    Mutant(
        "an update is counted before it is made",
        "training/engines/eager.py",
        "            loss = trainer.train_step(batch)\n",
        "            progress.made()\n            loss = trainer.train_step(batch)\n",
    ),
    Mutant(
        "losses of the updates before an error are not in the epoch's mean",
        "training/trainer.py",
        "            if block.losses:\n",
        "            if False:\n",
    ),
    Mutant(
        "a fit that an error ends has no on_fit_end",
        "training/trainer.py",
        "            self._end_after(error)\n",
        "",
    ),
    Mutant(
        "after an error at an epoch's end the schedule does not move",
        "training/trainer.py",
        "                self.engine.publish()\n            self.schedule.after_epoch()\n",
        "                self.engine.publish()\n",
        also=(
            (
                "        self._close_epoch()\n        self._tell_of_epochs()\n",
                "        self._close_epoch()\n        self._tell_of_epochs()\n"
                "        self.schedule.after_epoch()\n",
            ),
            (
                "        self._close_epoch()\n        self.plan = plan\n",
                "        self._close_epoch()\n        self.schedule.after_epoch()\n"
                "        self.plan = plan\n",
            ),
        ),
    ),
    Mutant(
        "a callable order is asked again after a stop",
        "training/blocks.py",
        "    elif plan is None or plan.epoch != epoch or plan.asked is not asked:\n",
        "    elif True:\n",
    ),
    Mutant(
        "ReduceLROnPlateau is given train_loss between validations",
        "training/optimizing/schedules.py",
        'metric = self.metric or ("val_loss" if validated else "train_loss")',
        'metric = self.metric or ("val_loss" if "val_loss" in records[-1] else "train_loss")',
    ),
    Mutant(
        "trainer.lr sets the rate of the first group alone",
        "training/optimizing/schedules.py",
        '        for group in optimizer.param_groups:\n            group["lr"] = rate\n',
        '        for group in optimizer.param_groups[:1]:\n            group["lr"] = rate\n',
    ),
    Mutant(
        "the history holds the live tensor of a learning rate",
        "training/trainer.py",
        "self.progress.lr = rate.clone() if isinstance(rate, Tensor) else rate",
        "self.progress.lr = rate",
    ),
)

MEANS = (
    Mutant(
        "any loss is taken for a mean over samples",
        "training/losses/known_means.py",
        "    if known is None or not all("
        "_is_shared(known, *named, batch) for named in known.tensors()):\n"
        "        return None\n",
        "    if known is None or not all("
        "_is_shared(known, *named, batch) for named in known.tensors()):\n"
        "        return _MEAN\n",
        CUT,
    ),
    Mutant(
        "weights of classes are left out of the mean",
        "training/losses/known_means.py",
        "        if self.weights is None:\n            each",
        "        if True:\n            each",
    ),
    Mutant(
        "ignored targets count",
        "training/losses/known_means.py",
        "counted = targets != self.ignore_index",
        "counted = targets == targets",
    ),
    Mutant(
        "a sum is averaged",
        "training/losses/known_means.py",
        '    if reduction == "sum":\n        return _SUM\n',
        '    if reduction == "sum":\n        return _MEAN\n',
    ),
    Mutant(
        "a part whose targets are all ignored makes the batch NaN",
        "training/gradients/accumulation.py",
        "partial(truediv, weight, total) if weight else None for",
        "partial(truediv, weight, total) for",
        CUT,
    ),
    Mutant(
        "the second pass goes on from the buffers of the first",
        "training/gradients/two_passes.py",
        "            start.restore()\n",
        "",
        CUT,
    ),
    Mutant(
        "each rank adds the whole gradient of the loss's own parameters",
        "training/gradients/two_passes.py",
        "if self.is_first and (loss.requires_grad or self.world.size == 1):",
        "if loss.requires_grad or self.world.size == 1:",
        RANKS,
    ),
    Mutant(
        "train_loss is a mean over samples, whatever the loss is divided by",
        "training/engines/eager.py",
        "block.note(loss, weight, size)",
        "block.note(loss, size, size)",
    ),
    Mutant(
        "an own compute_loss is cut without a word",
        "training/gradients/exact.py",
        "if has_own_loss(trainer) and not says_weight(trainer):",
        "if False:",
        CUT,
    ),
    Mutant(
        "layers that mix samples are cut without a word",
        "training/gradients/exact.py",
        "        check_separable(trainer.model, self.allowed, cut_by)\n",
        "",
        CUT,
    ),
    Mutant(
        "a metric is a mean over parts",
        "training/evaluating/evaluation.py",
        "        self.functions = {n: m for n, m in self.metrics.items() if not streams(m)}\n",
        "        self.metrics = {n: MeanOverSamples(m) for n, m in self.metrics.items()}\n"
        "        self.functions = {}\n",
    ),
)

OTHERS = (
    Mutant(
        "another default dtype ends the run",
        "training/safety/finite_guard.py",
        "self._one = torch.ones((), dtype=torch.float32, device=trainer.device)",
        "self._one = torch.ones((), device=trainer.device)",
        also=(
            (
                "            except RuntimeError:  # of gradients that the kernel does not take\n",
                "            except LookupError:\n",
            ),
            (
                "    except RuntimeError:  # it writes, and some may lie in one place",
                "    except LookupError:  # it writes, and some may lie in one place",
            ),
        ),
    ),
    Mutant(
        "bfloat16 has other bits",
        "training/descent.py",
        "_SAME_BITS = (torch.float32, torch.float64)",
        "_SAME_BITS = (torch.float32, torch.float64, torch.bfloat16)",
        EXACT,
    ),
    Mutant(
        "clipping adds up in the order of the groups",
        "training/gradients/accumulation.py",
        "return list(dict.fromkeys([*trainer.model.parameters(), *of_loss, *held]))",
        "return list(dict.fromkeys(held))",
        EXACT,
    ),
    Mutant(
        "an own train_step silently loses clipping and microbatches",
        "training/safety/finite_guard.py",
        "            if is_set and rung not in used:\n",
        "            if False:\n",
    ),
    Mutant(
        "a snapshot forgets which layers are frozen",
        "training/state/module_state.py",
        "[name for name, p in module.named_parameters() if not p.requires_grad]",
        "[]",
    ),
    Mutant(
        "L-BFGS goes on without the callbacks that correct gradients",
        "training/gradients/exact.py",
        '        trainer.emit("on_gradient", batch, losses[-1])\n',
        "",
        EXACT,
    ),
)

MUTANTS = (*LISTS_THAT_GO_STALE, *KEEPERS, *COUNTERS, *MEANS, *OTHERS)


# ── the search ──────────────────────────────────────────────────────────────────────────────────


def numbered(seed: int) -> Iterator[tuple[int, str, Random]]:
    """Numbers from 1, with the kind of program that has it, and what draws the programs of it."""
    randoms = {kind: Random(f"{seed} {kind}") for kind in TURNS}
    number = 0
    while True:
        for kind, turns in TURNS.items():
            for _ in range(turns):
                number += 1
                yield number, kind, randoms[kind]


def search(kinds: tuple[str, ...], most: int, seed: int) -> str:
    """``number: difference`` of the first program that differs, or "" if none of ``most`` does."""
    from oracle.check import Differs, NoReference, check
    from oracle.generator import generate

    for number, kind, random in numbered(seed):
        if number > most:
            return ""
        if kind not in kinds:
            continue
        try:
            check(generate(random, kind))
        except NoReference:
            continue
        except Differs as error:
            return f"{number}: {error}"
    raise AssertionError


def caught(mutant: Mutant | None, most: int = 5000, seed: int = 0) -> tuple[int | None, str]:
    """After how many programs the mutant is seen, None if never, and by what; None: no fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "gdtrain"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.source(), "utf-8")
        path = os.pathsep.join([folder, str(TESTS)])
        kinds = ",".join(mutant.kinds if mutant is not None else TURNS)
        command = [
            sys.executable,
            "-m",
            "oracle.mutants",
            "--search",
            kinds,
            f"--most={most}",
            f"--seed={seed}",
        ]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=folder
        )
    if done.returncode:
        raise RuntimeError(f"{command} does not run: {done.stderr.strip()}")
    number, _, text = done.stdout.partition(": ")
    return (int(number), text.strip()[:SHOWN]) if number.strip() else (None, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--most", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(search(tuple(options.search.split(",")), options.most, options.seed))
        return 0
    missed = 0
    for mutant in [m for m in MUTANTS if not options.names or m.name in options.names]:
        started = time.monotonic()
        number, text = caught(mutant, options.most, options.seed)
        missed += number is None
        shown = "never" if number is None else f"{number:5}"
        print(f"{shown}  {mutant.name}  ({time.monotonic() - started:.0f} s)\n       {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
