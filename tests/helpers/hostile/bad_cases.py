"""Configurations that are wrong, each in one way, and what is said of each, word for word."""

from gdtrain.config.schema import Config
from gdtrain.registry import names

KEYS = ", ".join(Config.model_fields)
OWN_PART = "; for a part of your own, give --import MODULE (in Python, import it first)"
LOSSES = ", ".join(names("loss"))
LOADERS = ", ".join(names("loader"))
ORDERS = ", ".join(names("order"))
MONITORS = ", ".join(names("monitor"))
METRICS = ", ".join(names("metric"))

# What is right; a case changes it. Lines of the file: data 1, model 2, loss 3, loader 4, and so on.
RIGHT = {
    "data": "{source: csv, path: data.csv, target: y}",
    "model": "linear",
    "loss": "mse",
    "loader": "batch",
    "optimizer": "{lr: 0.1}",
    "epochs": "1",
}
# Files beside it.
FILES = {
    "data.csv": "a,b,y\n1,2,0\n3,4,1\n5,6,2\n",
    "fractions.csv": "a,y\n1,0.5\n2,1\n",
    "large.csv": "a,y\n1,0\n1e39,1\n",
    "large_first.csv": "a,y\n1e39,0\n",
    "large_target.csv": "a,y\n1,0\n2,-1e300\n",
    "quote.csv": 'a,"y\n1,0\n',
}

# name -> (settings that differ, None for one that is not there; every line that is said)
CASES: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "no data": (
        {"data": None},
        ["a.yaml:1:1: data: missing; add data: where the samples come from, by source"],
    ),
    "no model": ({"model": None}, ["a.yaml:1:1: model: missing; add model: the model, by name"]),
    "no loss": ({"loss": None}, ["a.yaml:1:1: loss: missing; add loss: the loss, by name"]),
    "no loader": (
        {"loader": None},
        [
            (
                "a.yaml:1:1: loader: missing; add loader: the form of gradient descent: "
                "batch, sample or minibatch"
            )
        ],
    ),
    "no optimizer": (
        {"optimizer": None},
        [
            (
                "a.yaml:1:1: optimizer: missing; add optimizer: the optimizer, by name; sgd "
                "if no name is given"
            )
        ],
    ),
    "no epochs": (
        {"epochs": None},
        [
            (
                "a.yaml:1:1: epochs: missing; add epochs: number of passes over the training "
                "part, in total"
            )
        ],
    ),
    "data is a number": (
        {"data": "3"},
        ["a.yaml:1:7: data: must be a name or a mapping of settings, got 3"],
    ),
    "data is a list": (
        {"data": "[a]"},
        ["a.yaml:1:7: data: must be a name or a mapping of settings, got ['a']"],
    ),
    "data is nothing": (
        {"data": ""},
        ["a.yaml:1:6: data: must be a name or a mapping of settings, got nothing"],
    ),
    "data of an unknown name": (
        {"data": "nothing_like_it"},
        [
            (
                "a.yaml:1:7: data.source: must be one of digits, teaching, "
                "linear_regression, two_moons, quadratic, csv, npz, npy, pt, safetensors, "
                "mapped, stream, table, parquet; got 'nothing_like_it'" + OWN_PART
            )
        ],
    ),
    "model is a number": (
        {"model": "3"},
        ["a.yaml:2:8: model: must be a name or a mapping of settings, got 3"],
    ),
    "model is a list": (
        {"model": "[a]"},
        ["a.yaml:2:8: model: must be a name or a mapping of settings, got ['a']"],
    ),
    "model is nothing": (
        {"model": ""},
        ["a.yaml:2:7: model: must be a name or a mapping of settings, got nothing"],
    ),
    "model of an unknown name": (
        {"model": "nothing_like_it"},
        [
            "a.yaml:2:8: model.name: must be one of linear, mlp, cnn; got 'nothing_like_it'"
            + OWN_PART
        ],
    ),
    "loss is a number": (
        {"loss": "3"},
        ["a.yaml:3:7: loss: must be a name or a mapping of settings, got 3"],
    ),
    "loss is a list": (
        {"loss": "[a]"},
        ["a.yaml:3:7: loss: must be a name or a mapping of settings, got ['a']"],
    ),
    "loss is nothing": (
        {"loss": ""},
        ["a.yaml:3:6: loss: must be a name or a mapping of settings, got nothing"],
    ),
    "loss of an unknown name": (
        {"loss": "nothing_like_it"},
        [(f"a.yaml:3:7: loss.name: must be one of {LOSSES}; got 'nothing_like_it'" + OWN_PART)],
    ),
    "loader is a number": (
        {"loader": "3"},
        ["a.yaml:4:9: loader: must be a name or a mapping of settings, got 3"],
    ),
    "loader is a list": (
        {"loader": "[a]"},
        [f"a.yaml:4:10: loader[0].name: must be one of {LOADERS}; got 'a'" + OWN_PART],
    ),
    "loader is an empty list": (
        {"loader": "[]"},
        ["a.yaml:4:9: loader: must hold at least 1, got []"],
    ),
    "phases that do not rise, and a key of another form in one of them": (
        {
            "loader": "[{until_epoch: 3, name: sample}, {until_epoch: 3, name: minibatch, "
            "batch_size: 2}, batch]"
        },
        ["a.yaml:4:56: loader[1].until_epoch: must be > 3, where the phase before it ends; got 3"],
    ),
    "a phase without an end before another": (
        {"loader": "[sample, batch]"},
        [
            "a.yaml:4:10: loader[0].until_epoch: missing; every phase but the last says with "
            "which epoch it ends"
        ],
    ),
    "a last phase that ends": (
        {"loader": "[{until_epoch: 1, name: sample}, {name: batch, until_epoch: 9}]"},
        [
            "a.yaml:4:69: loader[1].until_epoch: must be left out in the last phase, which goes "
            "on to the end"
        ],
    ),
    "an end of a single loader": (
        {"loader": "{name: batch, until_epoch: 9}"},
        [
            "a.yaml:4:36: loader.until_epoch: has no effect outside a list of loaders; remove "
            "it, or add the loader after it"
        ],
    ),
    "keys of other forms in a phase": (
        {"loader": "[{until_epoch: 1, name: sample, batch_size: 2, drop: 3}, batch]"},
        [
            "a.yaml:4:41: loader[0].batch_size: has no effect under sample, whose batches are of "
            "one; remove it, or use name: minibatch",
            "a.yaml:4:56: loader[0].drop: unknown key; the keys here are until_epoch, name, order",
        ],
    ),
    "a phase whose batches are never full": (
        {
            "loader": "[{until_epoch: 1, name: sample}, {name: minibatch, batch_size: 999, "
            "drop_last: true}]"
        },
        [
            "a.yaml:4:88: loader[1].drop_last: leaves no batch: 3 samples do not fill one of 999",
        ],
    ),
    "batch sizes that do not follow": (
        {
            "loader": "{name: minibatch, batch_size: [{until_epoch: 2, value: 3}, {value: 0}, "
            "{until_epoch: 1, value: 5}]}"
        },
        [
            "a.yaml:4:76: loader.batch_size[1].value: must be >= 1, got 0",
        ],
    ),
    "batch sizes that do not rise": (
        {
            "loader": "{name: minibatch, batch_size: [{until_epoch: 2, value: 3}, "
            "{until_epoch: 1, value: 5}, {value: 7}]}"
        },
        [
            "a.yaml:4:82: loader.batch_size[1].until_epoch: must be > 2, where the phase before it "
            "ends; got 1",
        ],
    ),
    "a batch size that does not grow": (
        {"loader": "{name: minibatch, batch_size: {initial: 3, factor: 1, largest: 2}}"},
        [
            "a.yaml:4:60: loader.batch_size.factor: must be >= 1.01, got 1",
            "a.yaml:4:72: loader.batch_size.largest: must be > 3, the initial batch size, got 2",
        ],
    ),
    "loader is nothing": (
        {"loader": ""},
        ["a.yaml:4:8: loader: must be a name or a mapping of settings, got nothing"],
    ),
    "loader of an unknown name": (
        {"loader": "nothing_like_it"},
        [(f"a.yaml:4:9: loader.name: must be one of {LOADERS}; got 'nothing_like_it'" + OWN_PART)],
    ),
    "optimizer is a number": (
        {"optimizer": "3"},
        ["a.yaml:5:12: optimizer: must be a name or a mapping of settings, got 3"],
    ),
    "optimizer is a list": (
        {"optimizer": "[a]"},
        ["a.yaml:5:12: optimizer: must be a name or a mapping of settings, got ['a']"],
    ),
    "optimizer is nothing": (
        {"optimizer": ""},
        ["a.yaml:5:11: optimizer: must be a name or a mapping of settings, got nothing"],
    ),
    "optimizer of an unknown name": (
        {"optimizer": "nothing_like_it"},
        [
            (
                "a.yaml:5:12: optimizer.name: must be one of sgd, adam, adamw, lbfgs; got "
                "'nothing_like_it'" + OWN_PART
            )
        ],
    ),
    "model without a name": (
        {"model": "{hidden: [3]}"},
        ["a.yaml:2:8: model.name: missing; it must be one of linear, mlp, cnn"],
    ),
    "data without a source": (
        {"data": "{path: data.csv}"},
        [
            (
                "a.yaml:1:7: data.source: missing; it must be one of digits, teaching, "
                "linear_regression, two_moons, quadratic, csv, npz, npy, pt, safetensors, "
                "mapped, stream, table, parquet"
            )
        ],
    ),
    "model name misspelt": (
        {"model": "mpl"},
        [("a.yaml:2:8: model.name: must be one of linear, mlp, cnn; got 'mpl'; did you mean mlp?")],
    ),
    "loss name misspelt": (
        {"loss": "mean_squared_error"},
        [
            (
                f"a.yaml:3:7: loss.name: must be one of {LOSSES}; "
                "got 'mean_squared_error'; did you mean mse?"
            )
        ],
    ),
    "loader name in capitals": (
        {"loader": "Batch"},
        [(f"a.yaml:4:9: loader.name: must be one of {LOADERS}; got 'Batch'; did you mean batch?")],
    ),
    "optimizer name misspelt": (
        {"optimizer": "{name: adamm}"},
        [
            (
                "a.yaml:5:19: optimizer.name: must be one of sgd, adam, adamw, lbfgs; got "
                "'adamm'; did you mean adam?"
            )
        ],
    ),
    "seed negative": ({"seed": "-1"}, ["a.yaml:7:7: seed: must be >= 0, got -1"]),
    "seed too large": (
        {"seed": "9223372036854775808"},
        ["a.yaml:7:7: seed: must be < 9223372036854775808, got 9223372036854775808"],
    ),
    "seed a fraction": ({"seed": "1.5"}, ["a.yaml:7:7: seed: must be a whole number, got 1.5"]),
    "seed a word": ({"seed": "one"}, ["a.yaml:7:7: seed: must be a whole number, got 'one'"]),
    "seed a truth value": (
        {"seed": "true"},
        ["a.yaml:7:7: seed: must be a whole number, got true"],
    ),
    "device unknown": (
        {"device": "tpu"},
        ["a.yaml:7:9: device: must be auto, cpu, cuda, cuda:N or mps; got 'tpu'"],
    ),
    "device of a wrong number": (
        {"device": "cuda:x"},
        ["a.yaml:7:9: device: must be auto, cpu, cuda, cuda:N or mps; got 'cuda:x'"],
    ),
    "device a number": (
        {"device": "0"},
        ["a.yaml:7:9: device: must be auto, cpu, cuda, cuda:N or mps; got 0"],
    ),
    "epochs zero": ({"epochs": "0"}, ["a.yaml:6:9: epochs: must be >= 1, got 0"]),
    "epochs a fraction": (
        {"epochs": "2.5"},
        ["a.yaml:6:9: epochs: must be a whole number, got 2.5"],
    ),
    "epochs a float that is whole": (
        {"epochs": "2.0"},
        ["a.yaml:6:9: epochs: must be a whole number, got 2.0"],
    ),
    "epochs too many": (
        {"epochs": "2147483648"},
        ["a.yaml:6:9: epochs: must be < 2147483648, got 2147483648"],
    ),
    "epochs of 40 digits": (
        {"epochs": "9999999999999999999999999999999999999999"},
        [
            (
                "a.yaml:6:9: epochs: must be < 2147483648, got "
                "9999999999999999999999999999999999999999"
            )
        ],
    ),
    "epochs not a number": (
        {"epochs": ".nan"},
        ["a.yaml:6:9: epochs: must be a whole number, got nan"],
    ),
    "epochs in quotes": (
        {"epochs": "'1'"},
        ["a.yaml:6:9: epochs: must be a whole number, got '1'"],
    ),
    "precision unknown": (
        {"precision": "fp8"},
        [("a.yaml:7:12: precision: must be one of fp32, bf16, fp16, fp64; got 'fp8'")],
    ),
    "engine unknown": (
        {"engine": "fast"},
        ["a.yaml:7:9: engine: must be one of auto, eager, compile, scan, cuda_graph; got 'fast'"],
    ),
    "strategy unknown": (
        {"strategy": "split"},
        ["a.yaml:7:11: strategy: must be one of replicate, shard; got 'split'"],
    ),
    "accumulate_in unknown": (
        {"accumulate_in": "fp32"},
        ["a.yaml:7:16: accumulate_in: must be one of fp64; got 'fp32'"],
    ),
    "process_timeout zero": (
        {"process_timeout": "0"},
        ["a.yaml:7:18: process_timeout: must be > 0, got 0"],
    ),
    "process_timeout of ages": (
        {"process_timeout": "1e12"},
        ["a.yaml:7:18: process_timeout: must be <= 1e+07, got 1000000000000.0"],
    ),
    "clip_grad_norm negative": (
        {"clip_grad_norm": "-1"},
        ["a.yaml:7:17: clip_grad_norm: must be > 0, got -1"],
    ),
    "clip_grad_value over float32": (
        {"clip_grad_value": "1e39"},
        ["a.yaml:7:18: clip_grad_value: must be <= 1e+38, got 1e+39"],
    ),
    "clip_grad_norm infinite": (
        {"clip_grad_norm": ".inf"},
        ["a.yaml:7:17: clip_grad_norm: must be a finite number, got inf"],
    ),
    "microbatch_size zero": (
        {"microbatch_size": "0"},
        ["a.yaml:7:18: microbatch_size: must be >= 1, got 0"],
    ),
    "microbatch_size a word": (
        {"microbatch_size": "small"},
        ["a.yaml:7:18: microbatch_size: must be a whole number or auto, got 'small'"],
    ),
    "microbatch_allow a word": (
        {"microbatch_allow": "a"},
        ["a.yaml:7:19: microbatch_allow: must be a list, such as [a], got 'a'"],
    ),
    "memory_limit in unknown units": (
        {"microbatch_size": "auto", "memory_limit": "1 pound"},
        [
            (
                "a.yaml:8:15: memory_limit: must be a number of bytes such as 512MB or 2GiB, "
                "got '1 pound'"
            )
        ],
    ),
    "trainer not registered": (
        {"trainer": "mine"},
        [("a.yaml:7:10: trainer: 'mine' is not registered (registered: none); use --import")],
    ),
    "hidden not a list": (
        {"model": "{name: mlp, hidden: 8}"},
        ["a.yaml:2:28: model.hidden: must be a list, such as [8], got 8"],
    ),
    "hidden with a zero": (
        {"model": "{name: mlp, hidden: [4, 0]}"},
        ["a.yaml:2:32: model.hidden[1]: must be >= 1, got 0"],
    ),
    "hidden with a word": (
        {"model": "{name: mlp, hidden: [4, x]}"},
        ["a.yaml:2:32: model.hidden[1]: must be a whole number, got 'x'"],
    ),
    "hidden nested": (
        {"model": "{name: mlp, hidden: [[4]]}"},
        ["a.yaml:2:29: model.hidden[0]: must be a whole number, got [4]"],
    ),
    "hidden too large for a size": (
        {"model": "{name: mlp, hidden: [2000000000, 2000000000]}"},
        [
            (
                "a.yaml:2:8: model: needs more memory than there is for 2 inputs and 1 "
                "output; use fewer or smaller layers"
            )
        ],
    ),
    "hidden of 10^12": (
        {"model": "{name: mlp, hidden: [1000000000000]}"},
        ["a.yaml:2:29: model.hidden[0]: must be < 2147483648, got 1000000000000"],
    ),
    "dropout one": (
        {"model": "{name: mlp, dropout: 1}"},
        ["a.yaml:2:29: model.dropout: must be < 1, got 1"],
    ),
    "dropout negative": (
        {"model": "{name: mlp, dropout: -0.1}"},
        ["a.yaml:2:29: model.dropout: must be >= 0, got -0.1"],
    ),
    "activation unknown": (
        {"model": "{name: mlp, activation: rely}"},
        [
            (
                "a.yaml:2:32: model.activation: must be one of relu, tanh, sigmoid, gelu, "
                "silu, elu, leaky_relu, softplus, identity; got 'rely'; did you mean relu?"
            )
        ],
    ),
    "batch_norm a number": (
        {"model": "{name: mlp, batch_norm: 1}"},
        ["a.yaml:2:32: model.batch_norm: must be true or false, got 1"],
    ),
    "output_activation unknown": (
        {"model": "{name: linear, output_activation: relu}"},
        [
            (
                "a.yaml:2:42: model.output_activation: must be one of none, sigmoid, tanh, "
                "softplus, softmax, log_softmax; got 'relu'"
            )
        ],
    ),
    "hidden under linear": (
        {"model": "{name: linear, hidden: [3]}"},
        [
            (
                "a.yaml:2:23: model.hidden: unknown key; the keys here are name, bias, "
                "output_activation"
            )
        ],
    ),
    "channels empty": (
        {"model": "{name: cnn, channels: []}"},
        ["a.yaml:2:30: model.channels: must hold at least 1, got []"],
    ),
    "kernel even": (
        {"model": "{name: cnn, kernel_size: 2}"},
        ["a.yaml:2:33: model.kernel_size: must be odd, got 2"],
    ),
    "cnn poolings too many": (
        {
            "model": "{name: cnn, channels: [2, 2, 2, 2]}",
            "data": "{source: digits, shape: [1, 8, 8]}",
            "loss": "cross_entropy",
        },
        [
            (
                "a.yaml:2:8: model: a cnn with 4 poolings needs pictures of at least 16x16, "
                "got 8x8; use fewer channels"
            )
        ],
    ),
    "cnn on flat data": (
        {"model": "cnn"},
        [
            (
                "a.yaml:2:8: model: cnn needs inputs [channels, height, width], got [2]; set "
                "data.shape"
            )
        ],
    ),
    "cnn kernel too large": (
        {
            "model": "{name: cnn, channels: [2000000000], kernel_size: 2147483647}",
            "data": "{source: digits, shape: [1, 8, 8]}",
            "loss": "cross_entropy",
        },
        [
            (
                "a.yaml:2:8: model: needs more memory than there is for 64 inputs and 10 "
                "outputs; use fewer or smaller layers"
            )
        ],
    ),
    "delta zero": (
        {"loss": "{name: huber, delta: 0}"},
        ["a.yaml:3:28: loss.delta: must be > 0, got 0"],
    ),
    "delta too small": (
        {"loss": "{name: huber, delta: 1e-320}"},
        ["a.yaml:3:28: loss.delta: must be >= 1e-38, got 9.99989e-321"],
    ),
    "beta negative": (
        {"loss": "{name: smooth_l1, beta: -1}"},
        ["a.yaml:3:31: loss.beta: must be >= 0, got -1"],
    ),
    "label_smoothing over one": (
        {"loss": "{name: cross_entropy, label_smoothing: 1.1}", "data": "digits"},
        ["a.yaml:3:46: loss.label_smoothing: must be <= 1, got 1.1"],
    ),
    "weights negative": (
        {"loss": "{name: cross_entropy, weight: [-1]}", "data": "digits"},
        ["a.yaml:3:38: loss.weight[0]: must be >= 0, got -1"],
    ),
    "weights empty": (
        {"loss": "{name: cross_entropy, weight: []}", "data": "digits"},
        ["a.yaml:3:37: loss.weight: must hold at least 1, got []"],
    ),
    "weights of another number": (
        {"loss": "{name: cross_entropy, weight: [1, 2]}", "data": "digits"},
        [("a.yaml:3:37: loss.weight: must hold one number for each of the 10 outputs, got 2")],
    ),
    "p of three": (
        {"loss": "{name: multi_margin, p: 3}", "data": "digits"},
        ["a.yaml:3:31: loss.p: must be one of 1, 2; got 3"],
    ),
    "margin over float32": (
        {"loss": "{name: multi_margin, margin: 1e39}", "data": "digits"},
        ["a.yaml:3:36: loss.margin: must be <= 1e+38, got 1e+39"],
    ),
    "ignore_index a fraction": (
        {"loss": "{name: nll, ignore_index: 0.5}", "data": "digits"},
        ["a.yaml:3:33: loss.ignore_index: must be a whole number, got 0.5"],
    ),
    "reduction sum": (
        {"loss": "{name: kl_div, reduction: sum}"},
        ["a.yaml:3:33: loss.reduction: must be one of mean, batchmean; got 'sum'"],
    ),
    "an option of another loss": (
        {"loss": "{name: mse, delta: 1}"},
        ["a.yaml:3:19: loss.delta: unknown key; the keys here are name"],
    ),
    "mse of class options": (
        {"loss": "{name: mse, weight: [1]}"},
        ["a.yaml:3:19: loss.weight: unknown key; the keys here are name"],
    ),
    "cross_entropy of probabilities": (
        {
            "loss": "cross_entropy",
            "model": "{name: linear, output_activation: softmax}",
            "data": "digits",
        },
        [
            (
                "a.yaml:2:42: model.output_activation: must be none for the loss "
                "cross_entropy, got softmax"
            )
        ],
    ),
    "bce of logits": (
        {"loss": "bce"},
        ["a.yaml:1:7: data: targets: row 2 is 2; under bce targets must be in 0 … 1"],
    ),
    "kl_div of numbers": (
        {"loss": "kl_div"},
        [
            (
                "a.yaml:2:8: model.output_activation: must be log_softmax for the loss "
                "kl_div, got none"
            )
        ],
    ),
    "classes out of fractions": (
        {"loss": "cross_entropy", "data": "{source: csv, path: fractions.csv, target: y}"},
        [
            (
                "a.yaml:1:7: data: targets: row 0 is 0.5; class labels must be whole numbers "
                "0, 1, …, or use a loss for numbers such as mse"
            )
        ],
    ),
    "signs out of counts": (
        {"loss": "soft_margin"},
        [("a.yaml:1:7: data: targets: row 0 is 0; under soft_margin targets must be -1 or 1")],
    ),
    "accuracy of numbers": (
        {
            "metrics": "[accuracy]",
            "data": "{source: csv, path: data.csv, target: y, validation_fraction: 0.4}",
        },
        ["a.yaml:7:10: metrics: accuracy is not defined for mse; use mae, rmse or r2"],
    ),
    "mae of classes": (
        {
            "metrics": "[mae]",
            "data": "{source: digits, validation_fraction: 0.4}",
            "loss": "cross_entropy",
        },
        ["a.yaml:7:10: metrics: mae needs a loss of mse, l1, smooth_l1, huber"],
    ),
    "metrics unknown": (
        {"metrics": "[fbeta]"},
        [f"a.yaml:7:11: metrics[0]: must be one of {METRICS}; got 'fbeta'" + OWN_PART],
    ),
    "metrics of nothing": (
        {"metrics": "[mae]"},
        ["a.yaml:7:10: metrics: have no effect without data.validation_fraction; set it"],
    ),
    "batch_size missing": (
        {"loader": "minibatch"},
        [
            (
                "a.yaml:4:9: loader.batch_size: missing; samples per update; the last "
                "batch of an epoch has the rest"
            )
        ],
    ),
    "batch_size zero": (
        {"loader": "{name: minibatch, batch_size: 0}"},
        ["a.yaml:4:39: loader.batch_size: must be >= 1, got 0"],
    ),
    "batch_size a fraction": (
        {"loader": "{name: minibatch, batch_size: 1.5}"},
        ["a.yaml:4:39: loader.batch_size: must be a whole number, got 1.5"],
    ),
    "batch_size under sample": (
        {"loader": "{name: sample, batch_size: 2}"},
        [
            (
                "a.yaml:4:24: loader.batch_size: has no effect under sample, whose batches "
                "are of one; remove it, or use name: minibatch"
            )
        ],
    ),
    "drop_last under batch": (
        {"loader": "{name: batch, drop_last: true}"},
        [
            (
                "a.yaml:4:23: loader.drop_last: has no effect under batch, which has no last "
                "batch; remove it"
            )
        ],
    ),
    "order unknown": (
        {"loader": "{name: sample, order: random}"},
        [(f"a.yaml:4:31: loader.order: must be one of {ORDERS}; got 'random'" + OWN_PART)],
    ),
    "order empty": (
        {"loader": "{name: sample, order: []}"},
        ["a.yaml:4:31: loader.order: must hold at least 1, got []"],
    ),
    "order negative": (
        {"loader": "{name: sample, order: [-1]}"},
        ["a.yaml:4:32: loader.order[0]: must be >= 0, got -1"],
    ),
    "order out of range": (
        {"loader": "{name: sample, order: [0, 3]}"},
        ["a.yaml:4:31: loader.order: explicit indices must be in 0 … 2, got 3"],
    ),
    "order of a word": (
        {"loader": "{name: sample, order: [a]}"},
        ["a.yaml:4:32: loader.order[0]: must be a whole number, got 'a'"],
    ),
    "drop_last leaves nothing": (
        {"loader": "{name: minibatch, batch_size: 5, drop_last: true}"},
        ["a.yaml:4:53: loader.drop_last: leaves no batch: 3 samples do not fill one of 5"],
    ),
    "batch_norm of one": (
        {"model": "{name: mlp, batch_norm: true}", "loader": "sample"},
        [
            (
                "a.yaml:2:32: model.batch_norm: needs batches of at least 2 samples, and "
                "this loader gives one of 1; set it to false, or change loader.batch_size or "
                "loader.drop_last"
            )
        ],
    ),
    "lr missing": ({"optimizer": "sgd"}, ["a.yaml:5:12: optimizer.lr: missing; learning rate"]),
    "lr zero": ({"optimizer": "{lr: 0}"}, ["a.yaml:5:17: optimizer.lr: must be > 0, got 0"]),
    "lr a word": (
        {"optimizer": "{lr: fast}"},
        ["a.yaml:5:17: optimizer.lr: must be a number, got 'fast'"],
    ),
    "lr not a number": (
        {"optimizer": "{lr: .nan}"},
        ["a.yaml:5:17: optimizer.lr: must be a finite number, got nan"],
    ),
    "lr in quotes": (
        {"optimizer": "{lr: '0.1'}"},
        ["a.yaml:5:17: optimizer.lr: must be a number, got '0.1'"],
    ),
    "momentum one": (
        {"optimizer": "{lr: 1, momentum: 1}"},
        ["a.yaml:5:30: optimizer.momentum: must be < 1, got 1"],
    ),
    "nesterov alone": (
        {"optimizer": "{lr: 1, nesterov: true}"},
        [
            (
                "a.yaml:5:30: optimizer.nesterov: has no effect without momentum; set "
                "momentum, or remove it"
            )
        ],
    ),
    "nesterov with dampening": (
        {"optimizer": "{lr: 1, momentum: 0.9, dampening: 0.1, nesterov: true}"},
        ["a.yaml:5:61: optimizer.nesterov: needs dampening 0; remove one of the two"],
    ),
    "dampening alone": (
        {"optimizer": "{lr: 1, dampening: 0.5}"},
        [
            (
                "a.yaml:5:31: optimizer.dampening: has no effect without momentum; set "
                "momentum, or remove it"
            )
        ],
    ),
    "weight_decay negative": (
        {"optimizer": "{name: adam, weight_decay: -1}"},
        ["a.yaml:5:39: optimizer.weight_decay: must be >= 0, got -1"],
    ),
    "betas are unknown": (
        {"optimizer": "{name: adam, betas: [0.9, 0.99]}"},
        [("a.yaml:5:25: optimizer.betas: unknown key; the keys here are name, lr, weight_decay")],
    ),
    "max_iter zero": (
        {"optimizer": "{name: lbfgs, max_iter: 0}"},
        ["a.yaml:5:36: optimizer.max_iter: must be >= 1, got 0"],
    ),
    "momentum under adam": (
        {"optimizer": "{name: adam, momentum: 0.9}"},
        [
            (
                "a.yaml:5:25: optimizer.momentum: unknown key; the keys here are name, lr, "
                "weight_decay"
            )
        ],
    ),
    "scheduler without a name": (
        {"scheduler": "{per: step}"},
        [
            (
                "a.yaml:7:12: scheduler.name: missing; it must be one of constant, cosine, "
                "step, exponential, inverse_time, plateau"
            )
        ],
    ),
    "scheduler unknown": (
        {"scheduler": "polynomial"},
        [
            (
                "a.yaml:7:12: scheduler.name: must be one of constant, cosine, step, "
                "exponential, inverse_time, plateau; got 'polynomial'" + OWN_PART
            )
        ],
    ),
    "gamma over one": (
        {"scheduler": "{name: step, every: 2, gamma: 1.5}"},
        ["a.yaml:7:42: scheduler.gamma: must be <= 1, got 1.5"],
    ),
    "every missing": (
        {"scheduler": "step"},
        ["a.yaml:7:12: scheduler.every: missing; number of t between two reductions"],
    ),
    "every zero": (
        {"scheduler": "{name: step, every: 0}"},
        ["a.yaml:7:32: scheduler.every: must be >= 1, got 0"],
    ),
    "warmup negative": (
        {"scheduler": "{name: constant, warmup: -1}"},
        ["a.yaml:7:37: scheduler.warmup: must be >= 0, got -1"],
    ),
    "per unknown": (
        {"scheduler": "{name: constant, per: batch}"},
        ["a.yaml:7:34: scheduler.per: must be one of step, epoch; got 'batch'"],
    ),
    "b missing": (
        {"scheduler": "inverse_time"},
        [
            (
                "a.yaml:7:12: scheduler.b: missing; after b steps (or epochs) the learning "
                "rate is half of α_0"
            )
        ],
    ),
    "min_factor over one": (
        {"scheduler": "{name: cosine, min_factor: 2}"},
        ["a.yaml:7:39: scheduler.min_factor: must be <= 1, got 2"],
    ),
    "two cadences": (
        {"validation": "{every_n_steps: 1, every_n_epochs: 1}"},
        [
            (
                "a.yaml:7:48: validation.every_n_epochs: can't be set together with "
                "every_n_steps; remove one of the two"
            )
        ],
    ),
    "validation of nothing": (
        {"validation": "{every_n_steps: 1}"},
        [("a.yaml:7:13: validation: has no effect without data.validation_fraction; set it")],
    ),
    "early_stopping of nothing": (
        {"early_stopping": "{monitor: val_loss}"},
        [
            (
                "a.yaml:7:17: early_stopping: monitors val_loss but data.validation_fraction "
                "is 0; set it"
            )
        ],
    ),
    "patience zero": (
        {"early_stopping": "{monitor: train_loss, patience: 0}"},
        ["a.yaml:7:49: early_stopping.patience: must be >= 1, got 0"],
    ),
    "mode unknown": (
        {"early_stopping": "{monitor: train_loss, mode: low}"},
        ["a.yaml:7:45: early_stopping.mode: must be one of min, max; got 'low'"],
    ),
    "monitor unknown": (
        {"early_stopping": "{monitor: accuracy}"},
        [
            (
                "a.yaml:7:27: early_stopping.monitor: must be one of train_loss, val_loss; "
                "got 'accuracy'"
            )
        ],
    ),
    "monitors of another name": (
        {"monitors": "[sharpness, hessian]"},
        [
            (
                f"a.yaml:7:11: monitors: must be among {MONITORS}, each with options or alone; "
                "got 'hessian'" + OWN_PART
            )
        ],
    ),
    "monitors is a number": (
        {"monitors": "3"},
        [(f"a.yaml:7:11: monitors: must be among {MONITORS}, each with options or alone; got 3")],
    ),
    "a monitor twice": (
        {"monitors": "[sharpness, sharpness]"},
        ["a.yaml:7:11: monitors: must be different names; one of them occurs twice"],
    ),
    "no monitor": (
        {"monitors": "[]"},
        [(f"a.yaml:7:11: monitors: names no monitor; name some of {MONITORS}, or remove it")],
    ),
    "no monitor but nothing": (
        {"monitors": "{sharpness: null}"},
        [(f"a.yaml:7:11: monitors: names no monitor; name some of {MONITORS}, or remove it")],
    ),
    "a monitor that never looks": (
        {"monitors": "{sharpness: {every_n_steps: 0}}"},
        ["a.yaml:7:39: monitors.sharpness.every_n_steps: must be >= 1, got 0"],
    ),
    "a monitor with two cadences": (
        {"monitors": "{full_loss: {every_n_steps: 1, every_n_epochs: 1}}"},
        [
            (
                "a.yaml:7:58: monitors.full_loss.every_n_epochs: can't be set together with "
                "every_n_steps; remove one of the two"
            )
        ],
    ),
    "a key of a monitor that is unknown": (
        {"monitors": "{sharpness: {every_n_step: 1}}"},
        [
            (
                "a.yaml:7:24: monitors.sharpness.every_n_step: unknown key; did you mean "
                "every_n_steps?"
            )
        ],
    ),
    "groups as large as all their samples": (
        {"monitors": "{noise_scale: {num_samples: 8, batch_size: 8}}"},
        [
            (
                "a.yaml:7:54: monitors.noise_scale.batch_size: must be < num_samples = 8, "
                "for two groups, got 8"
            )
        ],
    ),
    "groups as large as the data": (
        {"monitors": "{noise_scale: {batch_size: 3}}"},
        [("a.yaml:7:25: monitors.noise_scale: needs two groups of 3 samples, and there are 3")],
    ),
    "monitors of a stream": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y}",
            "loader": "sample",
            "monitors": "[sharpness, update_ratio, full_loss]",
        },
        [
            (
                "a.yaml:7:11: monitors: full_loss, sharpness would look at samples again, and a "
                "stream's are read once; only update_ratio and trajectory can be had"
            )
        ],
    ),
    "log never": (
        {"log": "{every_n_steps: 0}"},
        ["a.yaml:7:22: log.every_n_steps: must be >= 1, got 0"],
    ),
    "log of an unknown key": (
        {"log": "{every: 1}"},
        [
            "a.yaml:7:7: log.every: unknown key; the keys here are every_n_steps, csv, "
            "tensorboard, picture"
        ],
    ),
    "keep none": (
        {"checkpoint": "{keep_last: 0}"},
        ["a.yaml:7:25: checkpoint.keep_last: must be >= 1, got 0"],
    ),
    "a checkpoint in no time": (
        {"checkpoint": "{every_seconds: 0}"},
        ["a.yaml:7:29: checkpoint.every_seconds: must be > 0, got 0"],
    ),
    "checkpoint a word": (
        {"checkpoint": "often"},
        ["a.yaml:7:13: checkpoint: must be a mapping of settings, got 'often'"],
    ),
    "a missing file": (
        {"data": "{source: csv, path: none.csv, target: y}"},
        [
            (
                "a.yaml:1:7: data: none.csv: file not found; paths are relative to the "
                "working directory"
            )
        ],
    ),
    "a directory": (
        {"data": "{source: csv, path: ., target: y}"},
        [
            (
                "a.yaml:1:7: data: .: contains a.yaml, whose name does not end like a table's "
                "(.csv, .parquet, …); give a pattern, such as ./*.csv"
            )
        ],
    ),
    "an empty path": (
        {"data": "{source: csv, path: '', target: y}"},
        ["a.yaml:1:27: data.path: must hold at least 1, got ''"],
    ),
    "a NUL in a path": (
        {"data": '{source: csv, path: "a\\0b", target: y}'},
        ["a.yaml:1:27: data.path: must not contain a NUL character; give a path"],
    ),
    "no target": (
        {"data": "{source: csv, path: data.csv}"},
        ["a.yaml:1:7: data.target: missing; name of the target column, or of several"],
    ),
    "no such target": (
        {"data": "{source: csv, path: data.csv, target: z}"},
        ["a.yaml:1:7: data: data.csv: has no column 'z'; it has a, b, y"],
    ),
    "no targets": (
        {"data": "{source: csv, path: data.csv, target: []}"},
        ["a.yaml:1:45: data.target: must hold at least 1, got []"],
    ),
    "no such feature": (
        {"data": "{source: csv, path: data.csv, target: y, features: [aa]}"},
        ["a.yaml:1:7: data: data.csv: has no column 'aa'; did you mean a?"],
    ),
    "the target as a feature": (
        {"data": "{source: csv, path: data.csv, target: y, features: [a, y]}"},
        [("a.yaml:1:7: data: data.csv: column 'y' is chosen twice; as feature or target, once")],
    ),
    "no features": (
        {"data": "{source: csv, path: data.csv, target: y, features: []}"},
        ["a.yaml:1:58: data.features: must hold at least 1, got []"],
    ),
    "a long delimiter": (
        {"data": "{source: csv, path: data.csv, target: y, delimiter: ', '}"},
        ["a.yaml:1:59: data.delimiter: must be one character, got ', '"],
    ),
    "another delimiter": (
        {"data": "{source: csv, path: data.csv, target: y, delimiter: ;}"},
        [
            (
                "a.yaml:1:7: data: data.csv: has no column 'y'; it has a,b,y; if it should have "
                "several, set delimiter"
            )
        ],
    ),
    "a quote as delimiter": (
        {"data": "{source: csv, path: data.csv, target: y, delimiter: '\"'}"},
        ["a.yaml:1:59: data.delimiter: must be one character, no quote, got '\"'"],
    ),
    "categorical of nothing": (
        {"data": "{source: csv, path: data.csv, target: y, categorical: [z]}"},
        ["a.yaml:1:7: data: data.csv: has no column 'z'; it has a, b, y"],
    ),
    "fraction one": (
        {"data": "{source: csv, path: data.csv, target: y, validation_fraction: 1}"},
        ["a.yaml:1:69: data.validation_fraction: must be < 1, got 1"],
    ),
    "fraction of all": (
        {"data": "{source: csv, path: data.csv, target: y, validation_fraction: 0.9}"},
        [
            (
                "a.yaml:1:7: data: no samples to train on: validation_fraction 0.9 takes 3 "
                "of 3; use a smaller fraction"
            )
        ],
    ),
    "shape of another size": (
        {"data": "{source: csv, path: data.csv, target: y, shape: [3]}"},
        ["a.yaml:1:7: data: shape [3] holds 3 numbers, but a sample has 2 inputs"],
    ),
    "shape with a zero": (
        {"data": "{source: csv, path: data.csv, target: y, shape: [0]}"},
        ["a.yaml:1:56: data.shape[0]: must be >= 1, got 0"],
    ),
    "shape too large": (
        {
            "data": (
                "{source: csv, path: data.csv, target: y, shape: [2000000000, 2000000000, "
                "2000000000]}"
            )
        },
        [
            (
                "a.yaml:1:7: data: shape [2000000000, 2000000000, 2000000000] holds "
                "8000000000000000000000000000 numbers, but a sample has 2 inputs"
            )
        ],
    ),
    "standardized classes": (
        {"data": "{source: digits, standardize_targets: true}", "loss": "cross_entropy"},
        [
            (
                "a.yaml:1:45: data.standardize_targets: is not defined for cross_entropy; "
                "it is for mse, l1, smooth_l1, huber, and for a loss of your own that is "
                "registered with targets=Targets(unit=True)"
            )
        ],
    ),
    "a number over float32": (
        {"data": "{source: csv, path: large.csv, target: y}"},
        [
            (
                "a.yaml:1:7: data: inputs: row 1, column 0 is 1e+39, which float32 does not "
                "hold; rescale it, or set precision: fp64"
            )
        ],
    ),
    "a target over float32": (
        {"data": "{source: csv, path: large_target.csv, target: y}"},
        [
            (
                "a.yaml:1:7: data: targets: row 1, column 0 is -1e+300, which float32 does "
                "not hold; rescale it, or set precision: fp64"
            )
        ],
    ),
    "samples zero": (
        {"data": "{source: teaching, num_samples: 0}"},
        ["a.yaml:1:39: data.num_samples: must be >= 1, got 0"],
    ),
    "samples of one moon": (
        {"data": "{source: two_moons, num_samples: 1}"},
        ["a.yaml:1:40: data.num_samples: must be >= 2, got 1"],
    ),
    "samples too many for memory": (
        {"data": "{source: teaching, num_samples: 2147483647, num_features: 1000}"},
        [
            (
                "a.yaml:1:7: data: needs more memory than there is; use fewer samples, or "
                "source: mapped, which is read as it is needed"
            )
        ],
    ),
    "noise negative": (
        {"data": "{source: two_moons, noise: -1}"},
        ["a.yaml:1:34: data.noise: must be >= 0, got -1"],
    ),
    "weights of another length": (
        {"data": "{source: linear_regression, num_features: 3, weights: [1, 2]}"},
        ["a.yaml:1:61: data.weights: must hold num_features = 3 numbers, got 2"],
    ),
    "spectrum negative": (
        {"data": "{source: quadratic, spectrum: [-1]}"},
        ["a.yaml:1:38: data.spectrum[0]: must be >= 0, got -1"],
    ),
    "fewer samples than eigenvalues": (
        {"data": "{source: quadratic, spectrum: [1, 2], num_samples: 1}"},
        ["a.yaml:1:58: data.num_samples: must be >= 2, one per eigenvalue, got 1"],
    ),
    "options of another source": (
        {"data": "{source: digits, num_samples: 3}"},
        [
            (
                "a.yaml:1:24: data.num_samples: unknown key; the keys here are "
                "validation_fraction, standardize, standardize_targets, shape, source"
            )
        ],
    ),
    "a stream of no format": (
        {"data": "{source: stream, path: data.csv, target: y}"},
        [
            (
                "a.yaml:1:7: data.format: missing; csv: numbers below a header; jsonl: an "
                "object with numbers on each line"
            )
        ],
    ),
    "a stream with validation": (
        {
            "data": (
                "{source: stream, format: csv, path: data.csv, target: y, validation_fraction: 0.1}"
            ),
            "loader": "sample",
        },
        [
            (
                "a.yaml:1:85: data.validation_fraction: can't be kept from a stream, whose "
                "end nobody knows; remove it"
            )
        ],
    ),
    "a stream in one batch": (
        {"data": "{source: stream, format: csv, path: data.csv, target: y}"},
        [
            (
                "a.yaml:4:9: loader: batch needs every sample for one update, and a stream "
                "has no last one; use minibatch or sample"
            )
        ],
    ),
    "a stream in another order": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y}",
            "loader": "{name: sample, order: reshuffle}",
        },
        [
            (
                "a.yaml:4:9: loader: order has no effect on a stream, which comes in its "
                "own; remove it"
            )
        ],
    ),
    "a stream of two epochs": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y}",
            "loader": "sample",
            "epochs": "2",
        },
        ["a.yaml:6:9: epochs: must be 1 on a stream, which is read once, got 2"],
    ),
    "a stream of classes unknown": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y}",
            "loader": "sample",
            "loss": "cross_entropy",
        },
        [
            (
                "a.yaml:1:7: data.num_classes: missing; cross_entropy needs to know the "
                "classes before the stream has shown them: set classes to their labels, or "
                "num_classes"
            )
        ],
    ),
    "a stream of classes for numbers": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y, num_classes: 3}",
            "loader": "sample",
        },
        ["a.yaml:1:77: data.num_classes: has no effect under mse; remove it"],
    ),
    "a stream of JSON that is CSV": (
        {"data": "{source: stream, format: jsonl, path: data.csv, target: y}", "loader": "sample"},
        [
            (
                "a.yaml:1:7: data: data.csv: line 1: is not JSON: Expecting value: line 1 "
                "column 1 (char 0)"
            )
        ],
    ),
    "a stream with labels twice": (
        {
            "data": "{source: stream, format: csv, path: data.csv, target: y, classes: [a, a]}",
            "loader": "sample",
            "loss": "cross_entropy",
        },
        [("a.yaml:1:73: data.classes: must be different labels; one of them occurs twice")],
    ),
    "a stream with a number over float32": (
        {
            "data": "{source: stream, format: csv, path: large_first.csv, target: y}",
            "loader": "sample",
        },
        [
            (
                "a.yaml:1:7: data: large_first.csv: line 2 'a' is '1e39', which float32 does "
                "not hold; rescale it, or set precision: fp64; correct it, or set "
                "data.on_bad_line: skip"
            )
        ],
    ),
    "a stream with a broken header": (
        {"data": "{source: stream, format: csv, path: quote.csv, target: y}", "loader": "sample"},
        ["a.yaml:1:7: data: quote.csv: line 1: unexpected end of data"],
    ),
    "an npz that is CSV": (
        {"data": "{source: npz, path: data.csv}"},
        [
            (
                "a.yaml:1:7: data: data.csv: can't be read: it is no file that np.save or "
                "np.savez wrote"
            )
        ],
    ),
    "a pt that is CSV": (
        {"data": "{source: pt, path: data.csv}"},
        ["a.yaml:1:7: data: data.csv: can't be read: it is damaged, or of another format"],
    ),
    "a safetensors that is CSV": (
        {"data": "{source: safetensors, path: data.csv}"},
        [
            (
                "a.yaml:1:7: data: data.csv: can't be read: Error while deserializing "
                "header: header too large"
            )
        ],
    ),
    "an npy that is CSV": (
        {"data": "{source: npy, path: data.csv, targets: data.csv}"},
        [
            (
                "a.yaml:1:7: data: data.csv: can't be read: it is no file that np.save or "
                "np.savez wrote"
            )
        ],
    ),
    "a mapped file": (
        {"data": "{source: mapped, path: data.csv}"},
        [
            (
                "a.yaml:1:7: data: data.csv: is not a folder that `python -m gdtrain "
                "convert` wrote; it has no data.json"
            )
        ],
    ),
    "a mapped folder of nothing": (
        {"data": "{source: mapped, path: .}"},
        [
            (
                "a.yaml:1:7: data: .: is not a folder that `python -m gdtrain convert` "
                "wrote; it has no data.json"
            )
        ],
    ),
    "an npy without targets": (
        {"data": "{source: npy, path: data.csv}"},
        ["a.yaml:1:7: data.targets: missing; the file with the targets, [n] or [n, …]"],
    ),
    "labels without end": (
        {"data": "{source: npz, path: labels.npz}", "model": "mlp", "loss": "cross_entropy"},
        [
            "note: the largest label, 1,000,000,000,000,000,000, makes more classes than there are "
            "samples (2); if the targets are no labels, use a loss for numbers, such as mse",
            (
                "a.yaml:2:8: model: needs more memory than there is for 1 input and "
                "1,000,000,000,000,000,001 outputs; use fewer or smaller layers"
            ),
        ],
    ),
    "an unknown key": (
        {"wombats": "0.1"},
        [(f"a.yaml:7:1: wombats: unknown key; the keys here are {KEYS}")],
    ),
    "a key of other libraries": (
        {"learning_rate": "0.1"},
        ["a.yaml:7:1: learning_rate: unknown key; did you mean optimizer.lr?"],
    ),
    "a key of other libraries in its section": (
        {"optimizer": "{name: adam, learning_rate: 0.1}"},
        ["a.yaml:5:25: optimizer.learning_rate: unknown key; did you mean lr?"],
    ),
    "a schedule by PyTorch's name": (
        {"scheduler": "CosineAnnealingLR"},
        [
            (
                "a.yaml:7:12: scheduler.name: must be one of constant, cosine, step, exponential, "
                "inverse_time, plateau; got 'CosineAnnealingLR'; did you mean cosine?"
            )
        ],
    ),
    "a metric as in a list of parts": (
        {"metrics": "[{name: accuracy}]"},
        [
            (
                "a.yaml:7:11: metrics[0]: must be a name; with options, write a mapping of names: "
                "{accuracy: {…}}"
            )
        ],
    ),
    "a key in capitals": ({"Seed": "1"}, ["a.yaml:7:1: Seed: unknown key; did you mean seed?"]),
    "a key without a name": (
        {"''": "1"},
        [(f"a.yaml:7:1: unknown key; the keys here are {KEYS}")],
    ),
    "an old key": (
        {"batch_size": "32"},
        ["a.yaml:7:1: batch_size: unknown key; did you mean loader.batch_size (of minibatch)?"],
    ),
    "several faults": (
        {"epochs": "0", "optimizer": "{lr: -1}", "model": "{name: mlp, hiden: [3]}", "seed": "x"},
        [
            "a.yaml:2:20: model.hiden: unknown key; did you mean hidden?",
            "a.yaml:5:17: optimizer.lr: must be > 0, got -1",
            "a.yaml:6:9: epochs: must be >= 1, got 0",
            "a.yaml:7:7: seed: must be a whole number, got 'x'",
        ],
    ),
}


def text_of(changes: dict[str, str | None]) -> str:
    """The configuration of a case."""
    lines = (RIGHT | changes).items()
    return "".join(f"{key}: {value}\n" for key, value in lines if value is not None)
