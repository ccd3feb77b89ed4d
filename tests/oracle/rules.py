"""Which programs have one meaning, by which any two loops can be compared."""

from __future__ import annotations

from oracle import zoo
from oracle.by_hand import sizes_of, smallest_batch, updates_of
from oracle.changes import BREAKS
from oracle.parts import FROM_RATE, OPEN_SCHEDULES, SGD_KINDS, SPARSE_OPTIMIZERS
from oracle.program import DATASETS, Event, Program

# Parameters with other memory or other values than those that their layer computes them from.
COMPUTED_WEIGHTS = {"tied", "parametrized", "spectral"}
# Models whose outputs for a batch nobody could put together from those for its parts.
NO_CUT_MODELS = {"growing", "remembering", "sometimes_sparse", "lazy"}
# Models that count samples, those of another try too.
COUNTING = {"counting", "counting_anew"}
# Losses that are a mean over samples or weights, so that a compute_loss of your own can be cut.
MEANS = {
    "mse", "mse_function", "huber", "smooth_partial", "bce", "learned", "focal", "entropy",
    "entropy_function", "entropy_ignored", "entropy_ignored_function", "entropy_weighted",
    "entropy_weighted_partial", "smoothed",
}  # fmt: skip
# What counts for a whole update, though it comes between two parts of its batch.
BETWEEN_PARTS = {
    "raise", "lr", "lr_of_trainer", "momentum", "weight_decay", "hook_before_step",
    "hook_after_step", "add_callback",
}  # fmt: skip
# Losses of which another computation leaves other random numbers, or another state.
MOVING_LOSSES = zoo.RANDOM_LOSSES | {"running", "running_anew"}
# Models whose forward pass sets weights, so that all ranks have to make it.
SETTING_WEIGHTS = {"max_norm", "clamped"}
# What ends a fit, or keeps what there is: it comes last in its moment.
LAST = {"raise", "stop", "snapshot", "out_of_memory", "nan"}
# Moments in the middle of an update.
INSIDE = {"forward", "loss", "gradient", "before_update"}
# A look from within an update, or one that needs the loop to be at rest.
AT_REST = {"evaluate", "predict", "stop", "state_dict", "replace_parameters", "snapshot"}
# Changes that end with the look in which a model makes them.
OF_A_LOOK = {"reseed", "to_eval", "to_train", "replace_buffers", "stale_gradients"}
# Changes of weights and gradients that count for the next update only if none is under way.
BETWEEN_UPDATES = {"bind", "clamp", "stale_gradients", "forget"}


def is_to_be_refused(p: Program) -> bool:
    """Whether no numbers could be right, so that it has to be refused, before any update."""
    if p.trainer == "own_step" and (p.clip_norm or p.clip_value or p.is_cut):
        return True  # these are left to train_step, which does nothing about them
    if not p.is_cut:
        return False
    return (
        p.model in zoo.MIXING_MODELS
        or (p.model == "running" and _has_parts(p))
        or (p.trainer == "unweighted")
        or (p.ranks > 1 and p.loss in zoo.RANDOM_LOSSES and p.trainer != "annealed")
    )


def is_to_be_refused_late(p: Program) -> bool:
    """Whether its first batches are too small for parts, so that it does not show in these."""
    small = p.data == "gaps" or smallest_batch(p) == 1
    return p.is_cut and p.model == "running" and small


def _has_parts(p: Program) -> bool:
    """Whether a process has two samples of a batch: in each batch, for else ranks come apart."""
    if p.ranks > 1:
        return smallest_batch(p) >= 2 * p.ranks
    return max(sizes_of(p)) >= 2


def is_sound(program: Program) -> bool:
    """Whether the parts fit together, and each event has one meaning."""
    if is_to_be_refused(program) and program.events:
        return False
    return (
        _parts_fit(program)
        and _data_fit(program)
        and (not program.is_cut or _can_be_cut(program))
        and (program.engine != "scan" or _can_be_scanned(program))
        and all(_event_fits(program, event) for event in program.events)
        and _events_fit(program)
    )


def _parts_fit(p: Program) -> bool:
    targets = zoo.LOSSES[p.loss][0]
    if p.memory_limit is not None and p.microbatch != "auto":
        return False
    if p.validation is not None and not _has_memory_for_looks(p):
        return False
    if p.dtype == "bfloat16" and (p.engine == "scan" or p.is_cut):
        return False
    if (p.model == "two_outputs") != (p.loss == "first"):
        return False
    if p.model in zoo.STOCK_MODELS and p.late:
        return False
    if p.model == "embedding" and p.optimizer not in SPARSE_OPTIMIZERS:
        return False
    if p.model == "sometimes_sparse" and p.optimizer != "sgd":
        return False
    if p.model in zoo.SPARSE_MODELS and (p.clip_norm or p.clip_value):
        return False
    if p.optimizer == "lbfgs" and (p.groups != "one" or p.model == "in_place"):
        return False
    if p.schedule == "plateau" and p.schedule_per == "step":
        return False
    if p.late and p.schedule not in OPEN_SCHEDULES:
        return False
    if p.metric and (p.validation is None or p.model == "two_outputs"):
        return False
    match p.trainer:
        case "annealed":
            tensors = p.model not in ("two_inputs", "two_outputs", "parametrized")
            return tensors and targets == "values" and p.loss != "learned"
        case "of_dicts":
            return p.validation is None
        case "perturbed":
            tensors = zoo.INPUTS.get(p.model) in (None, "images")
            others = p.model not in ("two_outputs", "in_place", "forces")
            return tensors and others and p.validation is None and not p.is_cut
        case "own_step":
            return p.optimizer != "lbfgs" and targets != "some_classes" and p.model != "in_place"
    return True


def _has_memory_for_looks(p: Program) -> bool:
    """Whether the outputs of all rows may be there at once; some losses and metrics need them."""
    return p.memory_limit is None or p.memory_limit >= 1000


def _data_fit(p: Program) -> bool:
    if p.drop_last and (p.form != "minibatch" or not updates_of(p)):
        return False
    if p.batch_size > p.samples or (p.data == "dicts") != (p.trainer == "of_dicts"):
        return False
    if p.data == "gaps":  # a batch without a row is no batch
        full = p.form == "minibatch" and p.samples % p.batch_size == 0 and p.batch_size > 1
        return full and p.order in ("sequential", "reshuffle", "shuffle_once")
    if p.data == "stream":
        plain = p.form in ("minibatch", "sample") and p.order == "sequential"
        return plain and not p.drop_last and p.fits == (1,)
    return True


def _can_be_cut(p: Program) -> bool:
    return (
        p.model not in NO_CUT_MODELS
        and not (p.model == "running" and not is_to_be_refused(p))
        and not (p.model in zoo.RANDOM_MODELS and p.size_of_parts is None)
        and p.optimizer not in ("lbfgs", "rprop")
        and not (p.ranks > 1 and p.data == "stream")
        # Two tensors for two samples: it can't be told what is a row, and that is refused.
        and not (p.data == "gaps" and p.model == "two_inputs" and _shares_of(p) & {2, 3})
        and not (p.ranks > 1 and p.model in COUNTING)  # each counts its own
        and not (p.ranks > 1 and p.data == "gaps" and p.batch_size < 4)  # one may have none
        and not (p.ranks > 1 and p.model in SETTING_WEIGHTS and smallest_batch(p) < p.ranks)
        and (p.microbatch is not None or not p.in_float64)
        and (p.trainer in ("plain", "annealed", "unweighted") or p.loss in MEANS)
    )


def _shares_of(p: Program) -> set[int]:
    """The samples that a process may have of a full batch."""
    return {p.batch_size // p.ranks, -(-p.batch_size // p.ranks)}


def _can_be_scanned(p: Program) -> bool:
    if p.model in SETTING_WEIGHTS and zoo.LOSSES[p.loss][0] == "some_classes":
        return False  # what forward sets in a pass that ends in NaN stays, or is undone with it
    quiet = p.model not in zoo.RANDOM_MODELS and p.loss not in zoo.RANDOM_LOSSES
    return quiet and p.optimizer in SGD_KINDS and p.microbatch is None and p.trainer == "plain"


def _event_fits(p: Program, e: Event) -> bool:
    return _moment_fits(p, e) and _change_fits(p, e)


def _moment_fits(p: Program, e: Event) -> bool:
    epochs = p.fits[-1]
    match e.when:
        case "fit" | "fit_start":
            return 0 <= e.number < len(p.fits)
        case "epoch_start":
            return 0 <= e.number < epochs
        case "order":
            return p.order in ("callable", "own_sampler") and 0 <= e.number < epochs
        case "epoch_end":
            return 1 <= e.number <= epochs
        case "item":
            plain = p.data in DATASETS and p.ranks == 1
            return plain and e.what == "raise" and 0 <= e.number < p.samples
        case "safe_point":
            return 1 <= e.number <= updates_of(p)
    if not 0 <= e.number < updates_of(p) or p.engine == "scan":
        return False
    if e.when == "forward" and p.model in zoo.STOCK_MODELS:
        return False
    if e.when in ("forward", "loss") and (p.ranks > 1 or p.optimizer == "lbfgs"):
        return False
    if e.when == "loss" and p.trainer not in ("plain", "noted"):
        return False
    return not (e.when in ("gradient", "before_update") and p.trainer == "own_step")


def _change_fits(p: Program, e: Event) -> bool:
    if (e.when in INSIDE or e.when == "order") and e.what in AT_REST:
        return False
    if p.microbatch == "auto" and e.when == "forward" and e.what in OF_A_LOOK:
        return False  # it may come in the pass that measures
    at_rest = e.when in ("fit", "safe_point", "epoch_end")
    if not at_rest and e.what in BETWEEN_UPDATES:
        return False
    if p.is_cut and (
        e.what == "hook_accumulated"  # which sees the sum of some of the parts
        or (e.when == "loss" and e.what not in BETWEEN_PARTS)
    ):
        return False
    if (
        p.is_cut
        and p.model in zoo.RANDOM_MODELS
        and (
            (e.when == "forward" and e.what == "reseed")  # the second pass starts as the first did
            or (e.when == "loss" and e.what in BREAKS)  # which comes when some or all are drawn
        )
    ):
        return False
    if e.value == "norm" and p.model not in zoo.WITH_NORM:
        return False
    if p.model in zoo.SPARSE_MODELS and e.what in {
        "stale_gradients", "hook_accumulated", "hook_gradient", "weight_decay", "momentum",
    }:  # fmt: skip
        return False
    if p.model in COMPUTED_WEIGHTS and e.what in {
        "bind", "clamp", "hook_after_step", "hook_gradient", "hook_accumulated",
        "replace_parameters",
    }:  # fmt: skip
        return False
    if p.optimizer == "lbfgs" and e.what in {
        "freeze", "unfreeze", "add_group", "replace_parameters", "bind",
    }:  # fmt: skip
        return False
    if p.optimizer == "lbfgs" and e.when in INSIDE and e.what in {"lr", "lr_of_trainer"}:
        return False  # it has read its settings by then
    in_parts = p.is_cut and e.when in ("forward", "loss")
    if e.what in BREAKS and e.value > 0 and not in_parts:
        return False  # there is one pass
    if p.model in zoo.RANDOM_MODELS and e.what in BREAKS and e.value > 0:
        return False  # those of the first parts have been drawn
    own_parts = in_parts and e.when == "loss" and p.trainer != "plain"
    if p.model in COUNTING and e.what == "raise" and (e.value > 0 or own_parts):
        return False  # and the samples of the first parts have been counted
    if e.when == "loss" and e.what in BREAKS and e.value > 0 and p.loss in MOVING_LOSSES:
        return False  # another try shows, and nobody says whether there is a second pass to fail
    match e.what:
        case "add_group":
            return p.late
        case "nan":
            return e.when == "loss" and not p.is_cut and p.trainer != "own_step"
        case "out_of_memory":
            return e.when == "forward" and p.microbatch == "auto"
        case "halve_gradient":
            return e.when in ("gradient", "before_update")
        case "snapshot":
            return e.when in ("fit", "safe_point") and p.data != "stream"
        case "add_callback":
            return p.trainer != "own_step" or e.value == "clamp"
        case "evaluate":
            plain = p.trainer != "perturbed" and p.data not in DATASETS
            return plain and _has_memory_for_looks(p)
        case "lr_of_trainer":
            return p.schedule in FROM_RATE
        case "predict":
            return p.model != "two_outputs"
        case "momentum":
            return p.optimizer != "nesterov" or e.value > 0
        case "to_train":
            return not (p.is_cut and p.model == "frozen_norm")
        case "raise" | "stop" if e.when == "fit":
            return False
        case "raise" if e.when in INSIDE:
            return p.trainer != "own_step"  # which may have made one of its two steps
    return True


def _events_fit(p: Program) -> bool:
    last: set[tuple[str, int]] = set()
    for event in p.events:
        if (event.when, event.number) in last:
            return False
        if event.what in LAST:
            last.add((event.when, event.number))
    whats = [e.what for e in p.events]
    if whats.count("add_group") > 1 or whats.count("snapshot") > 1:
        return False
    # Where such a stop ends the fit, and the next one finds the model in eval mode, is the clock's.
    stops = any((e.when, e.what) == ("epoch_start", "stop") for e in p.events)
    if stops and p.watch != 1 and any((e.what, e.value) == ("to_eval", "model") for e in p.events):
        return False
    # Who takes a snapshot up hooks its own parameters, not those that were replaced, nor those of a
    # lazy model, which it makes in its first pass.
    on_parameters = {"hook_gradient", "hook_accumulated"} & set(whats)
    unlike = "replace_parameters" in whats or p.model == "lazy"
    if on_parameters and unlike and "snapshot" in whats:
        return False
    # A callback that comes after the one which takes the snapshot is not called again.
    clamps = any(e.what == "add_callback" and e.value == "clamp" for e in p.events)
    return not (clamps and "snapshot" in whats)
