"""Pseudo-random draws that depend on nothing but a seed, a name and row numbers.

Each draw is a hash, so any row can be made on its own, in any order and on any number of threads,
and the same seed gives the same bytes everywhere. Only integer arithmetic and the exactly rounded
operations of IEEE 754 are used; no library's random generator, whose streams change with versions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Draws:
    """Draws of one seed. `what` names the draw: different names give independent values."""

    seed: int

    def bits(self, what: str, *keys: Ints) -> Bits:
        """64 hashed bits for each position of `keys` (arrays of one shape)."""
        digest = blake2b(f"{self.seed}/{what}".encode(), digest_size=8).digest()
        mixed = np.full(keys[0].shape, int.from_bytes(digest, "little"), dtype=np.uint64)
        for key in keys:
            mixed = _mix(mixed + (key.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return mixed

    def unit(self, what: str, *keys: Ints) -> Floats:
        """Uniform in [0, 1)."""
        return (self.bits(what, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, what: str, limit: int, *keys: Ints) -> Ints:
        """Uniform integers in [0, limit); limit at most 2**31."""
        high = self.bits(what, *keys) >> np.uint64(32)
        return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)

    def choose(self, what: str, weights: Sequence[int], *keys: Ints) -> Ints:
        """Positions in `weights`, each as likely as its weight."""
        edges = np.cumsum(np.asarray(weights, dtype=np.int64))
        drawn = self.below(what, int(edges[-1]), *keys)
        return np.searchsorted(edges, drawn, side="right").astype(np.int64)


def _mix(bits: Bits) -> Bits:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
