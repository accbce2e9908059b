"""What the models share: how they are loaded, and how fine-tuning is spelled."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import ribozyme
from ribozyme.engine.device import batch_tokens
from ribozyme.errors import ConfigError, InputError
from ribozyme.train.finetune import FineTuned
from ribozyme.train.heads import Pooler
from ribozyme.train.inputs import Inputs, read_inputs, run, special_tokens

Array = npt.NDArray[np.float32]
Optimizer = Callable[..., torch.optim.Optimizer]
DTYPE, DROPOUT = "float32", 0.02


@dataclass
class HelicalConfig:
    """Settings of every model.

    batch_size : inputs of a training step; at inference batches are filled by tokens, and it has no effect
    device : `cuda` warns and becomes `cpu` where there is none
    model_name : any name, folder, file or hub id that `ribozyme.load` takes
    """

    batch_size: int = 10
    device: Any = "cpu"

    @property
    def config(self) -> dict[str, Any]:
        """The settings as a dictionary."""
        return asdict(self)


def available(device: Any) -> str:
    """The device, or the CPU with a warning where this machine has no CUDA."""
    name = str(device)
    if name.startswith("cuda") and not torch.cuda.is_available():
        warnings.warn(
            f"device {name!r} was asked for, but there is no CUDA here: using the CPU", stacklevel=5
        )
        return "cpu"
    return name


def load(configurer: Any) -> Any:
    """The native model that a config asks for."""
    return ribozyme.load(configurer.model_name, device=available(configurer.device), dtype=DTYPE)


class HelicalBaseFoundationModel:
    """A loaded model: `process_data`, then `get_embeddings`.

    native : the same model as `ribozyme.load` gives it
    config : the settings as a dictionary
    """

    native: Any
    config: dict[str, Any]

    def _load(self, configurer: Any) -> None:
        self.config, self.native = configurer.config, load(configurer)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.native.module

    def _run(self, inputs: Inputs, compute: Callable[[Any], Any]) -> list[Array]:
        device = self.native.device
        return run(inputs, compute, device, batch_tokens(device))

    def _pooled(self, inputs: Inputs, pooling: str) -> Array:
        before, after = special_tokens(self.native)
        pooler = Pooler(pooling, self.native.config.dim, len(before), len(after))
        return np.stack(self._run(inputs, lambda batch: pooler(self.model.encode(batch), batch)))  # type: ignore[operator]


class HelicalSequenceModel(HelicalBaseFoundationModel):
    """A model of sequences."""

    special: int  # tokens of `max_length` that are no letters

    def process_data(self, sequences: Any, **unused: Any) -> Inputs:
        """Sequences (a list, array or Series of strings; one string is one sequence) as the model reads them.

        T is read as U. What goes past `max_length` is cut off at the 3' end, with a warning that counts it.
        """
        if isinstance(sequences, str):
            sequences = [sequences]
        longest = self.config["max_length"] - self.special
        return read_inputs(self.native, sequences, overlong="truncate", longest=longest)


class HelicalBaseFineTuningHead(nn.Module):
    """A head of your own: `forward` takes (n, width); `set_dim_size` is told the width."""

    task: Literal["classification", "regression"] = "classification"
    outputs: int | None = None

    def set_dim_size(self, dim_size: int) -> None:
        """Make the layers for vectors of `dim_size`."""


class HelicalBaseFineTuningModel(nn.Module):
    """A model with a head. Stands before the foundation class among the bases."""

    pooling: str  # of rows to the vector that the head reads

    def _build(self, configurer: Any, head: Any, output_size: int | None) -> None:
        nn.Module.__init__(self)
        self.config = configurer.config
        own = isinstance(head, nn.Module)
        task: Any = getattr(head, "task", "classification") if own else head
        outputs = (getattr(head, "outputs", None) if own else None) or output_size
        model = load(configurer)
        if own and hasattr(head, "set_dim_size"):
            head.set_dim_size(model.config.dim * len(self.pooling.split("+")))
        if outputs is None and task == "regression":
            outputs = 1
        self._hold_tuned(
            FineTuned(
                model,
                task=task,
                head=head if own else "linear",
                pooling=self.pooling,
                outputs=outputs,
                dropout=DROPOUT,
            )
        )

    def _hold_tuned(self, tuned: FineTuned) -> None:
        self.tuned = tuned
        self.native = tuned.model
        self.network = tuned.network

    def forward(self, batch: Any) -> torch.Tensor:
        """Outputs of a packed batch."""
        if self.network is None:
            raise ConfigError("this model has no head yet", hint="give output_size=, or train it")
        return self.network(batch)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module."""
        super().to(*args, **kwargs)
        self.native.device = next(self.native.module.parameters()).device
        return self

    def _fit(
        self,
        data: Any,
        labels: Any,
        held: Any,
        held_labels: Any,
        layers: int | None,
        optimizer: Optimizer,
        optimizer_params: dict[str, Any],
        loss_function: Any,
        epochs: int,
        lr_scheduler_params: dict[str, Any] | None,
    ) -> None:
        if labels is None:
            raise InputError("training needs labels", hint="train(dataset, labels)")
        if held is not None and held_labels is None:
            raise InputError("validation data without labels", hint="give validation_labels=")
        schedule = lr_scheduler_params or {}
        self.history = self.tuned.fit(
            data,
            labels,
            layers=layers,
            epochs=epochs,
            batch_size=self.config["batch_size"],
            validation=None if held is None else (held, held_labels),
            optimizer=partial(optimizer, **optimizer_params),
            loss=loss_function,
            decay=schedule.get("name", "constant").removesuffix("_with_warmup"),
            warmup=schedule.get("num_warmup_steps", 0),
        )
        self._hold_tuned(self.tuned)

    def get_outputs(self, dataset: Any) -> Array:
        """(n, output_size): class scores, or numbers in the units of the labels."""
        return self.tuned.outputs(dataset)

    def save_model(self, path: str | Path) -> None:
        """Write a folder with the network, the head, the labels and the settings."""
        self.tuned.save(path)

    def load_model(self, path: str | Path) -> None:
        """What `save_model` wrote."""
        head = self.tuned.head if isinstance(self.tuned.head, nn.Module) else None
        self._hold_tuned(FineTuned.load(path, device=str(self.native.device), head=head))


class HelicalSequenceFineTuningModel(HelicalBaseFineTuningModel):
    """Fine-tuning of a model of sequences."""

    def train(  # type: ignore[override]
        self,
        train_dataset: Any = True,
        train_labels: Any = None,
        optimizer: Optimizer = torch.optim.AdamW,
        optimizer_params: dict[str, Any] = {"lr": 1e-4},  # noqa: B006  # as in the original; never written to
        loss_function: Any = None,
        epochs: int = 1,
        trainable_layers: int | None = 2,
        validation_dataset: Any = None,
        validation_labels: Any = None,
        lr_scheduler_params: dict[str, Any] | None = None,
        *,
        mode: bool | None = None,
    ) -> Any:
        """Train on a processed data set; `train(True)` and `train(False)` set the mode, as of any module.

        trainable_layers : 0, the head alone; n, also the last n layers and the final norm; None, everything
        loss_function : by default mean squared error for regression, cross-entropy for classification
        lr_scheduler_params : `name` (`constant`, `linear`, `cosine`) and `num_warmup_steps`; the number of
            steps is what the data and the epochs make it
        """
        if mode is not None or isinstance(train_dataset, bool):
            return nn.Module.train(self, bool(train_dataset if mode is None else mode))
        self._fit(
            train_dataset,
            train_labels,
            validation_dataset,
            validation_labels,
            trainable_layers,
            optimizer,
            optimizer_params,
            loss_function,
            epochs,
            lr_scheduler_params,
        )
        return None
