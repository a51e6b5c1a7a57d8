"""The sums that a least-squares fit needs, and the fit."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Sums over rows (x, r) for the ridge regression of r on x with an intercept, in float64.

    Kept about a shift (the mean of the first piece), so that what has a large mean and a small variance loses no digits.
    As long as there are no more rows than regressors the rows themselves are kept, which is smaller; else their
    products, of size regressors squared per group.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[tuple[Tensor, Tensor]] | None = []
        self.shift = self.sum_x = self.sum_r = self.xx = self.rx = torch.zeros(0)

    def add(self, x: Tensor, r: Tensor) -> None:
        """x: (groups, rows, regressors), r: (groups, rows, outputs)."""
        if not self.count:
            self.shift = x.mean(1, keepdim=True)
            self.sum_x, self.sum_r = torch.zeros_like(self.shift), torch.zeros_like(r[:, :1])
        x = x - self.shift
        self.count += x.shape[1]
        self.sum_x, self.sum_r = self.sum_x + x.sum(1, keepdim=True), self.sum_r + r.sum(1, keepdim=True)
        if self.rows is None:
            self._multiply(x, r)
            return
        self.rows.append((x, r))
        if self.count > x.shape[2]:
            self._to_products()

    def _to_products(self) -> None:
        rows, self.rows = self.rows or [], None
        groups, _, regressors = rows[0][0].shape
        self.xx = self.shift.new_zeros(groups, regressors, regressors)
        self.rx = self.shift.new_zeros(groups, rows[0][1].shape[2], regressors)
        for x, r in rows:
            self._multiply(x, r)

    def _multiply(self, x: Tensor, r: Tensor) -> None:
        self.xx.baddbmm_(x.mT, x)
        self.rx.baddbmm_(r.mT, x)

    def mean_r(self) -> Tensor:
        """(groups, outputs)"""
        return (self.sum_r / self.count)[:, 0]

    def ridge(self, damping: float) -> tuple[Tensor, Tensor] | None:
        """argmin over D, d of  sum |r - D x - d|^2 + lambda |D|^2,  lambda = damping * mean nonzero eigenvalue of the scatter of x.

        With x and r about their means, X (regressors x rows), R (outputs x rows):

            D = R X^T (X X^T + lambda I)^-1  =  R (X^T X + lambda I)^-1 X^T,    d = mean r - D mean x,

        the second form where there are fewer rows than regressors (Hoerl and Kennard, "Ridge regression", 1970; the two
        are equal by the push-through identity). Solved by Cholesky in float64.

        Returns:
            D (groups, outputs, regressors) and d (groups, outputs); None where the scatter is singular at this damping.
        """
        mean_x, mean_r = self.sum_x / self.count, self.sum_r / self.count
        found = self._primal(damping, mean_x, mean_r) if self.rows is None else self._dual(damping, mean_x, mean_r)
        if found is None:
            return None
        return found, (mean_r.mT - found @ (mean_x + self.shift).mT)[:, :, 0]

    def _primal(self, damping: float, mean_x: Tensor, mean_r: Tensor) -> Tensor | None:
        factor = _damped_factor(self.xx - self.count * mean_x.mT @ mean_x, damping, self.count)
        if factor is None:
            return None
        return torch.cholesky_solve((self.rx - self.count * mean_r.mT @ mean_x).mT, factor).mT

    def _dual(self, damping: float, mean_x: Tensor, mean_r: Tensor) -> Tensor | None:
        x = torch.cat([x for x, _ in self.rows or ()], 1) - mean_x
        r = torch.cat([r for _, r in self.rows or ()], 1) - mean_r
        factor = _damped_factor(x @ x.mT, damping, x.shape[2])
        return None if factor is None else torch.cholesky_solve(r, factor).mT @ x


def _damped_factor(scatter: Tensor, damping: float, other: int) -> Tensor | None:
    """The Cholesky factor of scatter + lambda I, for X X^T or X^T X; ``other`` is the other size of X."""
    trace = scatter.diagonal(dim1=1, dim2=2).sum(1)
    size = scatter.shape[1]
    load = damping * trace / min(size, other)
    load = torch.where(load > 0, load, 1.0)  # a group whose inputs do not vary gets D = 0
    damped = scatter + load[:, None, None] * torch.eye(size, dtype=scatter.dtype, device=scatter.device)
    factor, info = torch.linalg.cholesky_ex(damped)
    return None if bool(info.any()) else factor
