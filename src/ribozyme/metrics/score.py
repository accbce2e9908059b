"""A number with its interval: percentile bootstrap over examples or over groups of them.

The interval says how the number would move with other test examples, not with another training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError

Values = npt.NDArray[Any]
Statistic = Callable[..., float]


class UndefinedError(ValueError):
    """Why a statistic has no value for these examples."""


class Resampling(TypedDict, total=False):
    """How the interval is found.

    groups : (n,) a label an example; whole groups are drawn, such as sequence clusters or donors
    confidence : of the interval
    resamples : how often examples are drawn; 0 for no interval
    seed : of the draws
    """

    groups: Any
    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    """A metric on n examples.

    low, high : interval by bootstrap; NaN where there is none
    reason : why the value, or the interval, is NaN
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"undefined ({self.reason})"
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: those are None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        kept: dict[str, Any] = {k: None if math.isnan(v) else v for k, v in numbers.items()}
        return {**kept, "n": self.n, **({"reason": self.reason} if self.reason else {})}

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> "Score":
        """What `to_dict` gave."""
        numbers = {k: math.nan if about[k] is None else float(about[k]) for k in ("value", "low", "high")}
        return cls(**numbers, n=int(about["n"]), reason=str(about.get("reason", "")))


def bootstrap(
    statistic: Statistic,
    *arrays: Any,
    groups: Any = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """A statistic of examples, with its percentile interval.

    Parameters
    ----------
    statistic : from arrays, of which the first axis is examples, to a number; `ValueError` where undefined
    arrays : labels, predictions, ...; each is resampled alike, so paired examples stay together
    groups, confidence, resamples, seed : as in `Resampling`

    Raises
    ------
    InputError : no examples, or arrays of different lengths.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not 0 < confidence < 1 or resamples < 0:
        raise ConfigError(f"confidence {confidence} and resamples {resamples} make no interval")
    data = [np.asarray(array) for array in arrays]
    count = _length(data)
    members = None if groups is None else group_codes(groups, count)
    try:
        value = float(statistic(*data))
    except UndefinedError as error:
        return Score(math.nan, n=count, reason=str(error))
    if members is not None and members.max() == 0:
        return Score(value, n=count, reason="one group says nothing of the spread")
    draw = _drawer(count, members, np.random.default_rng(seed))
    drawn = np.array([_or_nan(statistic, data, draw()) for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if 2 * len(drawn) <= resamples:
        reason = "undefined in most resamples" if resamples else ""
        return Score(value, n=count, reason=reason)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Score(value, float(low), float(high), count)


def difference(statistic: Statistic, truth: Any, ours: Any, theirs: Any, **how: Any) -> Score:
    """By how much `ours` scores above `theirs` on the same examples; keywords as of `bootstrap`.

    One is better by more than chance where the interval does not hold 0.
    """
    return bootstrap(lambda y, a, b: statistic(y, a) - statistic(y, b), truth, ours, theirs, **how)


def _length(arrays: list[Values]) -> int:
    lengths = {len(array) if array.ndim else -1 for array in arrays}
    if len(lengths) != 1 or -1 in lengths:
        raise InputError(
            f"labels and predictions are of different lengths: {', '.join(map(str, map(np.size, arrays)))}"
        )
    [count] = lengths
    if count == 0:
        raise InputError("there are no examples to score")
    return count


def group_codes(given: Any, count: int, what: str = "groups") -> npt.NDArray[np.int64]:
    """(n,) the group of each example as a number.

    Raises
    ------
    InputError : there is none for some example, or another number of them.
    """
    import pandas as pd

    kept = np.asarray(given, None if hasattr(given, "dtype") else object)  # None and NaN as they are
    if kept.ndim != 1:
        raise InputError(f"{what} of shape {kept.shape}", hint="(n,), one an example")
    codes = pd.factorize(kept, sort=True)[0]
    if len(codes) != count:
        raise InputError(f"{len(codes):,} {what} for {count:,} examples")
    if missing := int((codes < 0).sum()):
        raise InputError(f"{missing:,} {what} are missing")
    return np.asarray(codes, dtype=np.int64)


def _drawer(
    count: int, codes: npt.NDArray[np.int64] | None, generator: np.random.Generator
) -> Callable[[], npt.NDArray[np.int64]]:
    if codes is None:
        return lambda: generator.integers(count, size=count)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return lambda: np.concatenate([members[g] for g in generator.integers(len(members), size=len(members))])


def _or_nan(statistic: Statistic, data: list[Values], rows: npt.NDArray[np.int64]) -> float:
    try:
        return float(statistic(*(array[rows] for array in data)))
    except UndefinedError:
        return math.nan
