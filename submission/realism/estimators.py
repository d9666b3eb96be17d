"""Log-likelihood of logged values under histograms of simulated ones (wosac metric, estimators)."""

from __future__ import annotations

import torch
from torch import Tensor

from submission.realism.config import Bernoulli, Component, Histogram

__all__ = ["indicator_log_likelihood", "timeseries_log_likelihood"]


def _histogram(component: Component) -> Histogram:
    """The histogram of a component; a Bernoulli has two bins around 0 and 1."""
    estimator = component.estimator
    if isinstance(estimator, Bernoulli):
        return Histogram(-0.5, 1.5, 2, estimator.pseudocount)
    return estimator


def _edges(histogram: Histogram, device: torch.device) -> Tensor:
    """Bin edges as tf.linspace: start + step * i in float32, the last one exact."""
    low, high = (torch.full((), value, device=device) for value in (histogram.low, histogram.high))
    step = (high - low) / histogram.bins
    index = torch.arange(histogram.bins, dtype=torch.float32, device=device)
    return torch.cat((low + step * index, high.unsqueeze(0)))


def _bins(values: Tensor, histogram: Histogram) -> Tensor:
    """Bin of every value: half-open bins, the last one closed, outliers clipped, NaN in the last bin."""
    edges = _edges(histogram, values.device)
    clipped = torch.nan_to_num(values, nan=histogram.high).clamp(edges[0], edges[-1])
    return (torch.bucketize(clipped, edges, right=True) - 1).clamp(max=histogram.bins - 1)


def timeseries_log_likelihood(
    log_values: Tensor, sim_values: Tensor, component: Component, drop_nan: bool = False
) -> Tensor:
    """Log-likelihood of every logged value.

    Args:
        log_values: [E, T]. sim_values: [R, E, T]. component: of the feature.
        drop_nan: ignore simulated NaN, which count in the last bin in Waymo's code.

    Returns:
        [E, T] float32.
    """
    histogram = _histogram(component)
    agents, steps = log_values.shape
    row = torch.arange(agents, device=log_values.device)[:, None].expand(agents, steps)
    column = torch.arange(steps, device=log_values.device).expand(agents, steps)
    if component.aggregate_objects:
        row = torch.zeros_like(row)
    if component.independent_timesteps:
        column = torch.zeros_like(column)
    group = row * steps + column  # [E, T] values of one group are samples of one distribution
    flat = (group * histogram.bins + _bins(sim_values, histogram)).reshape(-1)
    weight = torch.ones_like(sim_values)
    if drop_nan:
        weight = (~torch.isnan(sim_values)).to(weight.dtype)
    counts = torch.zeros(agents * steps * histogram.bins, device=flat.device)
    counts = counts.index_add(0, flat, weight.reshape(-1)).view(-1, histogram.bins)
    smoothed = counts + histogram.pseudocount
    log_probability = torch.log(smoothed) - torch.log(smoothed.sum(-1, keepdim=True))
    return log_probability[group, _bins(log_values, histogram)]


def indicator_log_likelihood(log_values: Tensor, sim_values: Tensor, component: Component) -> Tensor:
    """Log-likelihood [E] of logged events [E] bool under simulated ones [R, E] bool."""
    log_likelihood = timeseries_log_likelihood(
        log_values.unsqueeze(-1).to(torch.float32), sim_values.unsqueeze(-1).to(torch.float32), component
    )
    return log_likelihood.squeeze(-1)
