"""Which genes of a cell a model sees when the cell expresses more than its window holds.

A sample, as published, but drawn from the cell itself: the random numbers are a hash of the user's seed, of
what the cell expresses, and of the gene. So a cell gets the same genes alone, in any batch, in any order, on
any worker, and with its columns in any order; no generator is stepped, and no cell waits for another.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError

Select = Literal["sample", "top"]
SELECTIONS: tuple[Select, ...] = ("sample", "top")
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def content_keys(ids: Ints, values: npt.NDArray[Any], indptr: Ints, seed: int = 0) -> Keys:
    """(n,) one 64-bit number a cell, a hash of its genes and values (in any order) and of `seed`.

    ids, values : (T,) genes and expressions, cells end to end; indptr : (n + 1,) where each cell begins
    """
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    tokens = _mix(ids.astype(np.uint64) ^ _mix(bits))
    running = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum(tokens, out=running[1:])  # modulo 2^64, so the differences are sums of single cells
    return _mix(running[indptr[1:]] - running[indptr[:-1]] + _mix(np.array([seed % 2**64], dtype=np.uint64)))


def draws(keys: Keys, ids: Ints, indptr: Ints, stream: int) -> npt.NDArray[np.float64]:
    """(T,) numbers from [0, 1), each a function of its cell's key and its gene; `stream` sets uses apart."""
    return (_lots(keys, ids, indptr, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _lots(keys: Keys, ids: Ints, indptr: Ints, stream: int) -> Keys:
    """(T,) 64 random bits a token."""
    return _mix(np.repeat(_mix(keys + np.uint64(stream)), np.diff(indptr)) ^ ids.astype(np.uint64))


def in_window(
    ids: Ints, values: npt.NDArray[Any], indptr: Ints, keys: Keys, *, genes: int, select: Select = "sample"
) -> npt.NDArray[np.bool_]:
    """(T,) which tokens stay so that no cell has more than `genes`; the order is left as it is.

    select : `sample`, a random sample that depends on nothing but the cell and the seed in its key;
        `top`, the largest values, equal ones at random in the same sense
    """
    if select not in SELECTIONS:
        raise ConfigError(f"select {select!r} does not exist", hint=f"one of {', '.join(SELECTIONS)}")
    sizes = np.diff(indptr)
    lots = _lots(keys, ids, indptr, stream=1)
    room = np.full(len(sizes), genes)
    if select == "sample":
        return _smallest(lots, sizes, room)
    values = -values.astype(np.float64)
    bound = np.repeat(_kth(values, sizes, room), sizes)
    keep, tied = values < bound, np.flatnonzero(values == bound)
    in_cell = np.repeat(np.arange(len(sizes)), sizes)
    room -= np.bincount(in_cell[keep], minlength=len(sizes))
    keep[tied] = _smallest(lots[tied], np.bincount(in_cell[tied], minlength=len(sizes)), room)
    return keep


def _smallest(numbers: Keys, sizes: Ints, count: Ints) -> npt.NDArray[np.bool_]:
    """(T,) true for the `count` smallest numbers of each cell, which are all different."""
    return numbers <= np.repeat(_kth(numbers, sizes, count), sizes)


def _kth(numbers: npt.NDArray[Any], sizes: Ints, count: Ints) -> npt.NDArray[Any]:
    """(n,) the `count`-th smallest number of each cell, the largest where it has fewer; no sort is needed."""
    kth = np.zeros(len(sizes), dtype=numbers.dtype)
    ends = np.cumsum(sizes)
    for cell, (end, size, k) in enumerate(zip(ends.tolist(), sizes.tolist(), count.tolist())):
        if size:
            k = min(k, size) - 1
            kth[cell] = np.partition(numbers[end - size : end], k)[k]
    return kth


def _mix(x: Keys) -> Keys:
    """The last steps of splitmix64 (Steele, Lea, Flood, 2014): each bit of x moves all bits of the result."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
