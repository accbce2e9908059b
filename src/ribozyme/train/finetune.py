"""Fine-tuning: a trained network with a head that learns a class, or numbers, for each input.

>>> tuned = FineTuned("rnafm-mini", task="classification")
>>> history = tuned.fit(["GGGAAACCC", "AUAUAUAUA"], ["hairpin", "open"])
>>> tuned.predict(["GGGAAACCC"]).shape
(1,)

Read on in the order of the work: `inputs` (sequences and cells as ids), `labels`, `supervised` (the two
together), `features` (computed once where the network stays), `heads`, `linear` (a linear head is solved),
`descent` and `loop` (everything else is trained by gradients), `saved` (the folder).
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ribozyme.engine.device import batch_tokens as default_batch_tokens
from ribozyme.engine.embed import Overlong
from ribozyme.engine.load import load as load_model
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.packing import Packed
from ribozyme.train import saved
from ribozyme.train.descent import Descent, Loss, Optimizer
from ribozyme.train.fitting import Fitting
from ribozyme.train.heads import ROW_HEADS, Network, Pooler, make_head
from ribozyme.train.history import History
from ribozyme.train.inputs import Inputs, codon_marks, default_pooling, read_inputs, run, special_tokens
from ribozyme.train.labels import TASKS, Labels, Level, Task
from ribozyme.train.lora import add_lora, merge_lora
from ribozyme.train.processes import process_device
from ribozyme.train.snapshot import weights_digest
from ribozyme.train.supervised import Examples, check_known, own_groups
from ribozyme.train.xy import pair

EPOCHS = 10
"""Where none are given and the head is not solved."""

Array = npt.NDArray[np.float32]


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
        joined by `+`, such as `mean+last`; of nucleotides also `frame`, three means: of the letters at each
        place in a codon, counted from the end of the sequence. By default `mean` for sequences and `cls` for
        cells; `none` where the head reads the rows of the letters (`textcnn`, `attention`, labels of letters)
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
        if getattr(self.model.config, "domains", 0):
            raise ConfigError(
                "this model norms each cell by its batch (DSBN), which a head is not told",
                hint="train the head on its embeddings (embed with batch_column), or one without dsbn",
            )
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
        self.pooler = Pooler(self.pooling, self.model.config.dim, before, after, codon_marks(self.model))
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
        epochs: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int = 0,
        decay: str = "constant",
        batch_size: int = 16,
        batch_tokens: int | None = None,
        clip: float = 1.0,
        validation: tuple[Any, Any] | None = None,
        groups: Any = None,
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

        A linear head alone is solved (`train/linear.py`), unless `epochs`, a loss or an optimizer is given;
        with layers or LoRA it begins at that solution, and descends from there (arXiv:2202.10054); where
        no epoch is better in the validation, the solution is what is kept.

        Parameters
        ----------
        inputs : whatever the model's `embed` takes, or what `read_inputs` made of it
        labels : one an input: numbers (n,) or (n, outputs), or classes (strings or whole numbers), or (n, k)
            of 0 and 1; of letters a list of such, one an input
        layers : 0, the head alone; n, also the last n layers and the final norm; None, everything
        epochs : by default 10, and none of what is solved
        warmup, decay : steps of rising learning rate; then `constant`, or to zero by `linear`, `cosine` or
            `wsd` (level, and linear over the last 40 %)
        batch_size : inputs of an optimizer step
        batch_tokens : tokens that go through the network at once; bounds the memory, not the result
        clip : longest gradient
        validation : inputs and labels to look at after each epoch; the best epoch's weights are kept
        groups : (n,) a label an input; a head that is solved is judged on whole groups
        patience : epochs that are no better after which to stop
        optimizer : makes an optimizer of parameters; by default AdamW
        loss : from outputs and labels in their own units to a mean; by default what the task says
        folder : keep the training there (`train/run.py`); where it was stopped, the same call in a new
            process goes on from its last checkpoint, and ends with the same weights
        save_every : steps between checkpoints; by default each epoch
        precision : `float32`, `bfloat16` or `auto`, as of `Loop`
        sorted_steps : steps whose inputs are sorted by length together

        Returns
        -------
        the losses; of a solved head of each penalty, from the strongest to the weakest (`rate`)

        Raises
        ------
        InputError : inputs or labels that cannot be used; nothing was trained then.
        ConfigError : a setting that makes no sense, a folder with another training, or a loss that became
            infinite.
        KeyboardInterrupt, SystemExit : with `folder`, on Ctrl-C or SIGTERM, after the checkpoint was written.
        """
        validation = None if validation is None else pair(validation)
        if patience is not None and validation is None:
            raise ConfigError(f"patience {patience} needs a validation", hint="give one, or leave it out")
        linear = self.head == "linear" and loss is None
        descent = Descent(
            epochs=EPOCHS if epochs is None else epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            batch_size=batch_size,
            batch_tokens=batch_tokens or default_batch_tokens(self.model.device),
            clip=clip,
            patience=patience,
            optimizer=optimizer,
            save_every=save_every,
            precision=precision,
            sorted_steps=sorted_steps,
            seed=int(torch.randint(2**62, (), generator=self.generator)),
        )
        known, examples = self._examples(inputs, labels, validation, groups, overlong, strict)
        descent.loop(examples.learnt)  # what is wrong with its settings is said before anything long
        network = self._attach_head(known)
        layers = None if layers is None else int(layers)
        fitting = Fitting(
            network=network,
            labels=known,
            examples=examples,
            how=descent,
            device=self.model.device,
            generator=self.generator,
            standardise=self.standardise and not self.fitted,
            folder=None if folder is None else Path(folder),
            about={} if folder is None else self._about(network, known, layers, examples, loss),
        )
        solved = epochs is None and linear and optimizer is None and self.solves(layers)
        with self._adapters(network):
            network.train_layers(layers)
            if solved:
                history = self._solved(fitting)
            else:
                from_solution = linear and self._deep(layers) and not self.fitted
                history = self._descended(fitting, loss, from_solution)
        network.requires_grad_(True)
        return history

    def _solved(self, fitting: Fitting) -> History:
        history = fitting.solve()
        self.outputs_wanted, self.fitted = None, True
        return history

    def _descended(self, fitting: Fitting, loss: Loss | None, from_solution: bool) -> History:
        """From the solution of a linear head, or from features that are standardised."""
        optimizer, run = fitting.begin()
        with contextlib.nullcontext() if run is None else run.alone():
            if not self.fitted and not fitting.going_on():
                if from_solution:
                    fitting.linear()
                else:
                    fitting.measure()
            self.outputs_wanted, self.fitted = None, True
            return fitting.descend(loss, optimizer, run, validate_first=from_solution)

    def _about(
        self, network: Network, labels: Labels, layers: int | None, examples: Examples, loss: Loss | None
    ) -> dict[str, Any]:
        """What must be the same for a training in a folder to go on."""
        return {
            "kind": "fine-tuning",
            "task": self.task,
            "inputs and labels": examples.digest(),
            "class weights": labels.weights,
            "loss": "of the task" if loss is None else saved.OWN,
            "head": self.head if isinstance(self.head, str) else saved.OWN,
            "pooling": self.pooling,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "standardise": self.standardise,
            "layers": layers,
            "lora_rank": self.lora_rank,
            "first weights": weights_digest(network),
        }

    def solves(self, layers: int | None) -> bool:
        """Whether `fit` solves for the head, where no epochs are given: a linear one alone."""
        return self.head == "linear" and self.dropout == 0 and not self._deep(layers)

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
        network, labels = self._ready()
        budget = batch_tokens or default_batch_tokens(self.model.device)
        network.eval()

        def compute(batch: Packed) -> Sequence[Tensor] | Tensor:
            found = labels.in_units(network(batch))
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
        settings = {
            "pooling": self.pooling,
            "head": self.head if isinstance(self.head, str) else saved.OWN,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "standardise": self.standardise,
        }
        saved.write(Path(folder), self.model, network, labels, settings)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", head: nn.Module | None = None) -> "FineTuned":
        """What `save` wrote; a head of your own is given as the same, empty, module.

        Raises
        ------
        CheckpointError : no such model, or one with a part missing, damaged, or of another version.
        """
        folder = Path(folder)
        settings, labels = saved.read_settings(folder)
        kind: Any = settings.pop("head")
        if kind == saved.OWN and head is None:
            raise CheckpointError(f"{folder}: has a head of the user's own", hint="give it by head=")
        tuned = cls(
            (folder / saved.BACKBONE).absolute(),
            task=labels.task,
            level=labels.level,
            head=head if kind == saved.OWN and head is not None else kind,
            outputs=labels.outputs,
            device=device,
            **{name: settings[name] for name in ("pooling", "hidden", "dropout", "standardise")},
        )
        saved.read_head(folder, tuned._ready()[0])
        tuned.labels, tuned.outputs_wanted, tuned.fitted = labels, None, True
        return tuned

    def _ready(self) -> tuple[Network, Labels]:
        if self.network is None or self.labels is None:
            raise ConfigError("this model has no head yet", hint="call fit, or give outputs=")
        return self.network, self.labels

    def _deep(self, layers: int | None) -> bool:
        """Whether more than the head is trained."""
        return layers != 0 or self.lora_rank is not None

    def _examples(
        self, inputs: Any, labels: Any, validation: Any, groups: Any, overlong: Overlong, strict: bool
    ) -> tuple[Labels, Examples]:
        """What the labels mean, and all that is given, checked. The first labels say what outputs mean."""
        data = self._read(inputs, overlong, strict)
        check_known(data)
        known = self.labels
        if known is None or self.outputs_wanted is not None:
            known = Labels.seen(
                self.task, labels, len(data), self.outputs_wanted, self.level, class_weight=self.class_weight
            )
        targets = known.encode(labels, len(data), self._letters(data))
        found = Examples(data, targets, len(data), own_groups(groups, len(data)))
        if validation is None:
            return known, found
        held = self._read(validation[0], overlong, strict)
        check_known(held)
        of_held = known.encode(validation[1], len(held), self._letters(held))
        return known, found.before(Examples(held, of_held, 0, own_groups(None, len(held))))

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

    @contextlib.contextmanager
    def _adapters(self, network: Network) -> Iterator[None]:
        """LoRA adapters for the time of a training."""
        if self.lora_rank is not None:
            add_lora(network.backbone, self.lora_rank, self.generator)
        try:
            yield
        finally:
            merge_lora(network.backbone)


def _own_copy(model: Any, device: str) -> Any:
    if isinstance(model, str | Path):
        return load_model(model, device=process_device(device), dtype="float32")
    own = copy.copy(model)
    own.module = copy.deepcopy(model.module)
    set_matmul_dtype(own.module, torch.float32)
    return own
