"""Fine-tuning: a trained network with a head that learns a class, or numbers, for each input.

>>> tuned = FineTuned("rnafm-mini", task="classification")
>>> history = tuned.fit(["GGGAAACCC", "AUAUAUAUA"], ["hairpin", "open"])
>>> tuned.predict(["GGGAAACCC"]).shape
(1,)
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ribozyme.checkpoint import open_checkpoint, read_json, shapes_of
from ribozyme.engine.device import batch_tokens as default_batch_tokens
from ribozyme.engine.embed import Overlong
from ribozyme.engine.load import load as load_model
from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.files import AtomicFile
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.packing import Packed
from ribozyme.train.feed import Feed, InMemory
from ribozyme.train.heads import ROW_HEADS, Network, Pooler, make_head
from ribozyme.train.inputs import Inputs, default_pooling, read_inputs, run, special_tokens
from ribozyme.train.labels import TASKS, Labels, Level, Task
from ribozyme.train.loop import Batch, Loop
from ribozyme.train.lora import add_lora, merge_lora
from ribozyme.train.processes import first_process, process_device
from ribozyme.train.run import History, Run
from ribozyme.train.schedule import Schedule, parameter_groups

FORMAT = 1
SETTINGS, HEAD, BACKBONE = "finetuned.json", "head.safetensors", "backbone"
OWN = "own"  # the kind of a head that the user made
SCALER = "scaler."  # of what the features are standardised by, beside the tensors of the head
MEASURED = 512  # inputs that it is measured on
MOST_KEPT = 2**30  # bytes of features that are kept in memory while a head alone is trained

Array = npt.NDArray[np.float32]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The objective of a fine-tuning: the mean loss of inputs with labels. An example is a place in the data.

    lengths : tokens of each input; of features that were computed once, their rows
    pack : places to a batch of inputs; features : rows of each input, where they were computed once
    goal : labels as numbers, of letters one tensor an input
    loss : the mean over some inputs, from outputs in units of the labels, labels, and letters of each input
    """

    lengths: Sequence[int]
    pack: Callable[[Sequence[int]], Packed]
    goal: Tensor | Sequence[Tensor]
    outputs: Callable[[Batch], Tensor]
    loss: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    features: Sequence[Tensor] | None = None
    parts: ClassVar[dict[str, float]] = {"labels": 1.0}

    def length(self, example: int) -> int:
        """Tokens of an input."""
        return self.lengths[example]

    def batch(self, examples: Sequence[int], keys: Any) -> Batch:
        """Inputs with their labels; nothing about them is random."""
        own = [self.goal[k] for k in examples]
        goal = torch.stack(own) if isinstance(self.goal, Tensor) else torch.cat(own)
        targets = {"labels": goal}
        if self.features is not None:
            targets["features"] = torch.cat([self.features[k] for k in examples])
        return Batch(self.pack(examples), targets, {"labels": float(len(examples))})

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sum over the inputs."""
        counts = batch.inputs.lengths
        return {"labels": self.loss(self.outputs(batch), batch.targets["labels"], counts) * len(counts)}


class FineTuned:
    """A trained network with a head.

    Parameters
    ----------
    model : what `ribozyme.load` takes (loaded in float32), or a loaded model, of which a copy is trained
    task : `regression` (mean squared error), `classification` (cross-entropy) or `multilabel` (several labels
        of 0 and 1 an input)
    level : `input`, a label an input; `token`, one for each of its letters
    head : `linear`, `mlp`, `textcnn`, `attention`, or a module of your own from (n, width) to (n, outputs)
    pooling : how the rows of an input become one vector: `mean`, `last`, `first`, `max`, `cls`, or several
        joined by `+`, such as `mean+last`; by default `mean` for sequences and `cls` for cells; `none` where
        the head reads the rows of the letters (`textcnn`, `attention`, labels of letters)
    lora_rank : each training also trains LoRA adapters of this rank, and adds them to the weights at its end
    class_weight : of a classification, `balanced` or a weight by class
    standardise : the head reads features with the mean taken off, divided by their deviation, both measured
        on some of the first training inputs
    outputs : numbers that the head gives; by default what the labels of the first `fit` need
    hidden : width between the two layers of an `mlp` (by default that of the vector), channels of a `textcnn`
    dropout : share of the numbers that the head drops while training
    device : as in `ribozyme.load`, where `model` is a name
    generator : draws the first weights of the head, the order of the inputs, and dropout

    Attributes
    ----------
    model : the network as `ribozyme.load` gives it, to embed with
    network : the same with its pooling and head, a `torch.nn.Module`; None until there are outputs
    labels : what the outputs mean
    """

    def __init__(
        self,
        model: Any,
        *,
        task: Task,
        level: Level = "input",
        head: str | nn.Module = "linear",
        pooling: str | None = None,
        lora_rank: int | None = None,
        class_weight: Any = None,
        standardise: bool = False,
        outputs: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        device: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if task not in TASKS:
            raise ConfigError(f"task {task!r} does not exist", hint=f"one of {', '.join(TASKS)}")
        self.model = _own_copy(model, device)
        self.task, self.head, self.hidden, self.dropout = task, head, hidden, dropout
        self.level, self.lora_rank, self.class_weight = level, lora_rank, class_weight
        self.standardise = standardise
        rows = level == "token" or head in ROW_HEADS
        if level == "token" and head in ROW_HEADS:
            raise ConfigError(f"head {head!r} makes one vector an input", hint="for letters: linear or mlp")
        if rows and pooling not in (None, "none"):
            raise ConfigError(f"this head reads the letters, not their {pooling!r}", hint="leave pooling out")
        self.pooling = pooling or ("none" if rows else default_pooling(self.model))
        if self.pooling == "none" and not rows:
            raise ConfigError("pooling 'none' leaves no vector for this head", hint="leave pooling out")
        self.generator = generator or torch.Generator().manual_seed(0)
        before, after = (len(ids) for ids in special_tokens(self.model))
        self.pooler = Pooler(self.pooling, self.model.config.dim, before, after)
        self.network: Network | None = None
        self.labels: Labels | None = None
        self.outputs_wanted = outputs  # None once labels were seen
        self.fitted = False
        if outputs is not None:
            self._attach_head(Labels.blank(task, outputs, level))
        elif not isinstance(head, str):
            raise ConfigError("a head of your own needs the number of its outputs", hint="give outputs=")

    def fit(
        self,
        inputs: Any,
        labels: Any,
        *,
        layers: int | None = 0,
        epochs: int = 10,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int = 0,
        decay: str = "constant",
        batch_size: int = 16,
        batch_tokens: int | None = None,
        clip: float = 1.0,
        validation: tuple[Any, Any] | None = None,
        patience: int | None = None,
        optimizer: Optimizer | None = None,
        loss: Loss | None = None,
        overlong: Overlong = "error",
        strict: bool = False,
        folder: str | Path | None = None,
        save_every: int = 0,
        precision: str = "float32",
        sorted_steps: int = 1,
    ) -> History:
        """Train the head, and as much of the network as is asked for; again, to go on training.

        Parameters
        ----------
        inputs : whatever the model's `embed` takes, or what `read_inputs` made of it
        labels : one an input: numbers (n,) or (n, outputs), or classes (strings or whole numbers), or (n, k)
            of 0 and 1; of letters a list of such, one an input
        layers : 0, the head alone; n, also the last n layers and the final norm; None, everything
        warmup, decay : steps of rising learning rate; then `constant`, or to zero by `linear`, `cosine` or
            `wsd` (level, and linear over the last 40 %)
        batch_size : inputs of an optimizer step
        batch_tokens : tokens that go through the network at once; bounds the memory, not the result
        clip : longest gradient
        validation : inputs and labels to look at after each epoch; the best epoch's weights are kept
        patience : epochs that are no better after which to stop
        optimizer : makes an optimizer of parameters; by default AdamW
        loss : from outputs and labels in their own units to a mean; by default what the task says
        folder : keep the training there (`train/run.py`); where it was stopped, the same call in a new
            process goes on from its last checkpoint, and ends with the same weights
        save_every : steps between checkpoints; by default each epoch
        precision : `float32`, `bfloat16` or `auto`, as of `Loop`
        sorted_steps : steps whose inputs are sorted by length together

        Raises
        ------
        InputError : inputs or labels that cannot be used; nothing was trained then.
        ConfigError : a setting that makes no sense, a folder with another training, or a loss that became
            infinite.
        KeyboardInterrupt, SystemExit : with `folder`, on Ctrl-C or SIGTERM, after the checkpoint was written.
        """
        budget = batch_tokens or default_batch_tokens(self.model.device)
        if validation is not None and not (isinstance(validation, tuple) and len(validation) == 2):
            raise ConfigError("validation is a pair of inputs and labels", hint="validation=(inputs, labels)")
        if min(epochs, batch_size, budget) < 1:
            raise ConfigError(
                f"epochs {epochs}, batch_size {batch_size} and batch_tokens {budget} must be positive"
            )
        data = _whole(self._read(inputs, overlong, strict))
        known = self._understood(labels, len(data))
        targets = known.encode(labels, len(data), self._letters(data))
        held, held_targets = None, None
        if validation is not None:
            held = _whole(self._read(validation[0], overlong, strict))
            held_targets = known.encode(validation[1], len(held), self._letters(held))
        network = self._attach_head(known)
        seed = int(torch.randint(2**62, (), generator=self.generator))
        every = -(-len(data) // batch_size)
        loop = Loop(
            schedule=Schedule(steps=epochs * every, kind=decay, warmup=warmup),
            batch_tokens=budget,
            clip=clip,
            log_every=every,
            validate_every=every,
            save_every=save_every or every,
            patience=patience,
            precision=precision,
            seed=seed,
        )
        feed = Feed(
            corpus=InMemory(range(len(data))),
            size=batch_size,
            unit="examples",
            buffer=len(data),
            sorted_steps=sorted_steps,
            seed=seed,
        )
        with self._adapters(network):
            network.train_layers(layers)
            if optimizer is None:
                groups = parameter_groups(network.named_parameters(), weight_decay)
                descent: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=learning_rate)
            else:
                descent = optimizer([p for p in network.parameters() if p.requires_grad])
            if self.standardise and not self.fitted:
                self._measure(data, budget)
            self.outputs_wanted, self.fitted = None, True
            whole = layers != 0 or network.adapted or self._features_bytes(data) > MOST_KEPT
            every_row = len(data) if held is None else len(data) + len(held)
            objective = self._labelled(
                _joined(data, held), _joined_targets(targets, held_targets), whole, budget, loss
            )
            settings = {
                "kind": "fine-tuning",
                "task": self.task,
                "layers": layers,
                "lora_rank": self.lora_rank,
                "rate": [type(descent).__name__, *(group["lr"] for group in descent.param_groups)],
                "data": _digest(objective),
                **asdict(loop.schedule),
                **{"batch_size": batch_size, "clip": clip, "patience": patience, "seed": seed},
            }
            history = loop.train(
                network,
                objective,
                feed,
                descent,
                held=range(len(data), every_row),
                run=None if folder is None else Run(folder, settings, writes=first_process()),
            )
        network.requires_grad_(True)
        return history

    def outputs(
        self,
        inputs: Any,
        *,
        batch_tokens: int | None = None,
        overlong: Overlong = "error",
        strict: bool = False,
    ) -> Any:
        """(n, outputs) float32: of a regression in the units of the labels, of a classification logits.

        Of letters a list of (letters_i, outputs). A cell without known genes has NaN.

        Raises
        ------
        InputError : as `embed` of the model.
        ConfigError : there is no head yet.
        """
        data = self._read(inputs, overlong, strict)
        network, _ = self._ready()
        budget = batch_tokens or default_batch_tokens(self.model.device)
        network.eval()

        def compute(batch: Packed) -> Sequence[Tensor] | Tensor:
            found = self._in_units(network(batch))
            return found.split(network.pooler.counts(batch.lengths)) if self.level == "token" else found

        found = run(data, compute, self.model.device, budget)
        if self.level == "token":
            return found
        rows = np.stack(found)
        rows[data.empty] = np.nan
        return rows

    def predict(self, inputs: Any, **how: Any) -> Any:
        """The class, or the numbers, of each input; keywords as of `outputs`."""
        outputs = self.outputs(inputs, **how)
        return self._ready()[1].decode(outputs)

    def probabilities(self, inputs: Any, **how: Any) -> Any:
        """(n, classes) float32, columns as in `labels.classes`; of letters a list. Keywords: of `outputs`."""
        if self.task == "regression":
            raise ConfigError("a regression has no probabilities", hint="use predict")
        outputs = self.outputs(inputs, **how)
        labels = self._ready()[1]
        return (
            [labels.probabilities(one) for one in outputs]
            if self.level == "token"
            else labels.probabilities(outputs)
        )

    def save(self, folder: str | Path) -> None:
        """Write backbone, head and labels into a folder; `FineTuned.load` gives the same predictions."""
        network, labels = self._ready()
        folder = Path(folder)
        if folder.is_file():
            raise InputError(f"{folder} is a file", hint="a fine-tuned model is saved as a folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).unlink(missing_ok=True)  # written last: a save that was cut short is no model
        self.model.save(folder / BACKBONE)
        parts = {**network.head.state_dict(), **network.scaler.state_dict(prefix=SCALER)}
        state = {name: t.detach().cpu().contiguous() for name, t in parts.items()}
        with AtomicFile(folder / HEAD) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        settings = {
            "format": FORMAT,
            "pooling": self.pooling,
            "head": self.head if isinstance(self.head, str) else OWN,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "standardise": self.standardise,
            "labels": asdict(labels),
        }
        with AtomicFile(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", head: nn.Module | None = None) -> "FineTuned":
        """What `save` wrote; a head of your own is given as the same, empty, module.

        Raises
        ------
        CheckpointError : no such model, or one with a part missing, damaged, or of another version.
        """
        folder = Path(folder)
        settings, labels = _read_settings(folder)
        kind: Any = settings["head"]
        if kind == OWN and head is None:
            raise CheckpointError(f"{folder}: has a head of the user's own", hint="give it by head=")
        if not (folder / BACKBONE).is_dir():
            raise CheckpointError(f"{folder}: there is no folder {BACKBONE!r} in it")
        found = dict(open_checkpoint(folder / HEAD).tensors)
        tuned = cls(
            (folder / BACKBONE).absolute(),
            task=labels.task,
            level=labels.level,
            head=head if kind == OWN and head is not None else kind,
            pooling=settings["pooling"],
            outputs=labels.outputs,
            hidden=settings["hidden"],
            dropout=settings["dropout"],
            standardise=settings["standardise"],
            device=device,
        )
        network, _ = tuned._ready()
        scaler = {name: found.pop(name, torch.empty(0)) for name in network.scaler.state_dict(prefix=SCALER)}
        if any(t.shape != (tuned.pooler.width,) for t in scaler.values()):
            raise CheckpointError(f"{folder / HEAD}: its {SCALER[:-1]} does not fit")
        network.scaler.load_state_dict({name.removeprefix(SCALER): t for name, t in scaler.items()})
        if (shapes := {n: tuple(t.shape) for n, t in found.items()}) != shapes_of(network.head):
            raise CheckpointError(f"{folder / HEAD}: tensors {shapes} do not fit a {kind!r} head")
        network.head.load_state_dict(found)
        tuned.labels, tuned.outputs_wanted, tuned.fitted = labels, None, True
        return tuned

    def _ready(self) -> tuple[Network, Labels]:
        if self.network is None or self.labels is None:
            raise ConfigError("this model has no head yet", hint="call fit, or give outputs=")
        return self.network, self.labels

    def _understood(self, labels: Any, count: int) -> Labels:
        """What the first labels mean gives the head its outputs, classes and units; later ones must fit."""
        if self.labels is not None and self.outputs_wanted is None:
            return self.labels
        return Labels.seen(
            self.task, labels, count, self.outputs_wanted, self.level, class_weight=self.class_weight
        )

    def _attach_head(self, labels: Labels) -> Network:
        if self.network is None:
            head = self.head
            if isinstance(head, str):
                head = make_head(
                    head,
                    self.pooler.width,
                    labels.outputs,
                    hidden=self.hidden,
                    dropout=self.dropout,
                    generator=self.generator,
                )
            self.network = Network(self.model.module, self.pooler, head).to(self.model.device).eval()
        self.labels = labels
        return self.network

    def _read(self, inputs: Any, overlong: Overlong, strict: bool) -> Inputs:
        return read_inputs(self.model, inputs, overlong=overlong, strict=strict)

    def _letters(self, data: Inputs) -> list[int]:
        return [length - data.special for length in data.lengths]

    def _features_bytes(self, data: Inputs) -> int:
        return 4 * self.pooler.width * sum(self.pooler.counts(data.lengths))

    def _measure(self, data: Inputs, budget: int) -> None:
        """Mean and deviation of the features of some training inputs."""
        network, _ = self._ready()
        chosen = torch.randperm(len(data), generator=self.generator)[:MEASURED].tolist()
        network.eval()
        network.scaler.measure(run(data.chosen(chosen), network.features, self.model.device, budget))

    @contextlib.contextmanager
    def _adapters(self, network: Network) -> Iterator[None]:
        """LoRA adapters for the time of a training."""
        if self.lora_rank is not None:
            add_lora(network.backbone, self.lora_rank, self.generator)
        try:
            yield
        finally:
            merge_lora(network.backbone)

    def _labelled(self, data: Inputs, targets: Any, whole: bool, budget: int, own: Loss | None) -> Labelled:
        """Inputs that go through the network, or features of them that the head reads."""
        network, labels = self._ready()

        def loss(outputs: Tensor, goal: Tensor, counts: Sequence[int]) -> Tensor:
            if own is not None:
                return own(outputs, goal)
            rows = [count - data.special for count in counts] if whole else counts
            return labels.losses(outputs, goal, rows).mean()

        if whole:
            return Labelled(
                data.lengths, data.pack, targets, lambda batch: self._in_units(network(batch.inputs)), loss
            )
        network.eval()  # the backbone does not change: each input goes through it once
        found = run(data, network.features, self.model.device, budget)
        features = [torch.from_numpy(one) for one in found]
        counts = [len(one) for one in features]

        def read(batch: Batch) -> Tensor:
            return self._in_units(network.read(batch.targets["features"], batch.inputs.lengths))

        def places(chosen: Sequence[int]) -> Packed:
            return Packed.of([np.full(counts[k], k, np.int64) for k in chosen])

        return Labelled(counts, places, targets, read, loss, features)

    def _in_units(self, outputs: Tensor) -> Tensor:
        """Outputs of the head in the units of the labels."""
        _, labels = self._ready()
        if self.task != "regression":
            return outputs
        return outputs * outputs.new_tensor(labels.scale) + outputs.new_tensor(labels.mean)


def _own_copy(model: Any, device: str) -> Any:
    if isinstance(model, str | Path):
        return load_model(model, device=process_device(device), dtype="float32")
    own = copy.copy(model)
    own.module = copy.deepcopy(model.module)
    set_matmul_dtype(own.module, torch.float32)
    return own


def _joined(data: Inputs, held: Inputs | None) -> Inputs:
    """Training inputs, and behind them those to validate on."""
    if held is None:
        return data
    values = None if data.values is None or held.values is None else [*data.values, *held.values]
    return Inputs([*data.ids, *held.ids], values, data.special)


def _joined_targets(targets: Any, held: Any) -> Any:
    if held is None:
        return targets
    return torch.cat([targets, held]) if isinstance(targets, Tensor) else [*targets, *held]


def _digest(objective: Labelled) -> str:
    """What tells one data set from another."""
    found = hashlib.sha256(np.asarray(objective.lengths).tobytes())
    for k in range(len(objective.lengths)):
        if objective.features is None:
            found.update(objective.pack([k]).ids.numpy().tobytes())
        found.update(objective.goal[k].numpy().tobytes())
    return found.hexdigest()


def _whole(data: Inputs) -> Inputs:
    if data.empty.any():
        raise InputError(
            f"{int(data.empty.sum()):,} inputs have nothing that the model knows, the first at position "
            f"{int(data.empty.argmax())}",
            hint="leave them, and their labels, out of the training",
        )
    return data


def read_saved(path: Path, form: int) -> dict[str, Any]:
    """What `save` wrote beside the weights, if it is of the format that is known here.

    Raises
    ------
    CheckpointError : there is no such file, or it is damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: there is no {path.name}", hint="is it a folder that save wrote?"
        )
    settings = read_json(path)
    if settings.get("format") != form:
        raise CheckpointError(
            f"{path}: format {settings.get('format')!r} is not understood", hint="update ribozyme"
        )
    return settings


def _read_settings(folder: Path) -> tuple[dict[str, Any], Labels]:
    path = folder / SETTINGS
    settings = read_saved(path, FORMAT)
    try:
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings["labels"].items()
        }
        settings = {"hidden": None, "standardise": False, **settings}
        types: dict[str, Any] = {"pooling": str, "head": str, "dropout": int | float, "standardise": bool}
        types["hidden"] = int | None
        if wrong := [name for name, kind in types.items() if not isinstance(settings[name], kind)]:
            raise TypeError(f"{wrong[0]} is {settings[wrong[0]]!r}")
        return settings, Labels(**kept)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its settings are damaged ({error})") from error
