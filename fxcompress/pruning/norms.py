"""Batch-norm statistics from calibration data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class BatchMoments:
    """Cumulative averages, over batches, of the mean and the unbiased variance of every channel.

        m_t = m_{t-1} + (mean(x_t) - m_{t-1}) / t,    v_t = v_{t-1} + (var(x_t) - v_{t-1}) / t

    as a batch norm with ``momentum=None`` keeps them, which is what ``torch.optim.swa_utils.update_bn`` runs.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    var: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """x: (batch, channels, *size)."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, axes, correction=1 if x.shape[1] < x.numel() else 0)
        self.count += 1
        self.mean = self.mean + (mean.double() - self.mean) / self.count
        self.var = self.var + (var.double() - self.var) / self.count

    def finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.var.isfinite().all())

    def close_to(self, other: BatchMoments) -> bool:
        """Whether two averages are the same but for rounding."""
        scale = other.var.sqrt()
        return bool(((self.mean - other.mean).abs() <= 1e-6 * scale).all() and ((self.var - other.var).abs() <= 1e-6 * other.var).all())


def reestimated(pruned: BatchMoments) -> tuple[Tensor, Tensor]:
    """The statistics of what the norm reads now: running_mean' = m', running_var' = v'.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018 (bn_update);
    for pruned networks Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020.
    """
    return pruned.mean, pruned.var


def matched(mean: Tensor, var: Tensor, eps: float, original: BatchMoments, pruned: BatchMoments) -> tuple[Tensor, Tensor]:
    """Statistics that give the output of the norm the mean and variance it had in the original network.

    With the moments m, v of what it read in the original network on the calibration data, those of what it reads now
    m', v', and its statistics there mu = ``mean``, s^2 = ``var`` + ``eps``:

        s'^2 = s^2 v' / v,    mu' = m' - (m - mu) s' / s,

    which is m', v' where mu, s^2 are m, v, but does not carry the difference between training and calibration data
    into the network. Source: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair",
    ICLR 2023, section 4. Channels that do not vary keep their variance.
    """
    mu, square = mean.double(), var.double() + eps
    varies = (original.var > 0) & (pruned.var > 0)
    ratio = torch.where(varies, pruned.var / torch.where(varies, original.var, 1.0), 1.0)
    new = (square * ratio - eps).clamp_min(0.0)
    return pruned.mean - (original.mean - mu) * ((new + eps) / square).sqrt(), new
