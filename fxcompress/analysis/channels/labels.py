"""Channel labels: integers that are the same for channels that must be kept or removed together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]

FIXED = 0  # the label of what can never be removed and has no class of its own


class Labels:
    """A union-find over labels in which whole arrays are made, united and looked up at once.

    A union points the larger root at the smaller one, so no cycle can arise; two unions of one root in the same
    array may overwrite each other, which is why :meth:`unite` repeats until both sides agree.
    """

    def __init__(self) -> None:
        self._parent: Array = np.zeros(1024, dtype=np.int64)
        self.count = 1  # label 0 is FIXED

    def fresh(self, count: int) -> Array:
        """``count`` new labels."""
        first, self.count = self.count, self.count + count
        if self.count > len(self._parent):
            grown = np.zeros(max(self.count, 2 * len(self._parent)), dtype=np.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
        made = np.arange(first, self.count, dtype=np.int64)
        self._parent[first : self.count] = made
        return made

    def find(self, labels: Array) -> Array:
        """The root of every label, in the same shape."""
        root = self._parent[labels]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[labels] = root
        return root

    def unite(self, left: Array, right: Array) -> None:
        """Tie the labels that stand at the same (broadcast) place. FIXED ties nothing."""
        left, right = np.broadcast_arrays(left, right)
        real = (left != FIXED) & (right != FIXED)
        left, right = left[real], right[real]
        while True:
            left, right = self.find(left), self.find(right)
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            self._parent[np.maximum(left, right)] = np.minimum(left, right)
