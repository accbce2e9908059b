"""The errors of ribozyme: each says what is wrong, where, and what to do.

::

    RibozymeError
    ├── InputError(ValueError)          a sequence, table or cell that cannot be used
    ├── ConfigError(ValueError)         a setting, or a config.json, that makes no sense
    ├── CheckpointError(ValueError)     a weight file that is damaged, incomplete or not understood
    ├── HubError(OSError)               a model name that cannot be turned into files
    ├── OutputError(OSError)            a result that cannot be written, or was damaged since
    ├── DeviceError(RuntimeError)       a device or number type that this machine lacks
    └── MissingExtraError(ImportError)  an optional library that is not installed

    InputWarning(UserWarning)           something was changed or left out; the message counts it

Outer code adds the place (file, record) with `add_note`.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "HubError",
    "InputError",
    "InputWarning",
    "MissingExtraError",
    "OutputError",
    "RibozymeError",
]


class RibozymeError(Exception):
    """Base of every error that ribozyme raises on purpose; `hint` says what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(RibozymeError, ValueError):
    """A sequence, table or cell that cannot be used."""


class ConfigError(RibozymeError, ValueError):
    """A setting, or a config.json, that makes no sense."""


class CheckpointError(RibozymeError, ValueError):
    """A weight file that is damaged, incomplete, or not understood."""


class HubError(RibozymeError, OSError):
    """A model name that cannot be turned into files."""


class OutputError(RibozymeError, OSError):
    """A result that cannot be written, or that was damaged since it was."""


class DeviceError(RibozymeError, RuntimeError):
    """A device or number type that this machine lacks."""


class MissingExtraError(RibozymeError, ImportError):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}", hint=f"pip install 'ribozyme[{extra}]'")


class InputWarning(UserWarning):
    """Something in the input was changed or left out; the message counts it."""
