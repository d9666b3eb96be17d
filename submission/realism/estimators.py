"""Log-likelihood of logged values under histograms of simulated ones (wosac metric, estimators).

Features with the same number of bins are computed together. Shape legend: F features, R rollouts, E agents, T
steps, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from submission.realism.config import Bernoulli, Component, Histogram


def _histogram(component: Component) -> Histogram:
    """The histogram of a component; a Bernoulli has two bins around 0 and 1."""
    estimator = component.estimator
    if isinstance(estimator, Bernoulli):
        return Histogram(-0.5, 1.5, 2, estimator.pseudocount)
    return estimator


def _edges(histogram: Histogram) -> Tensor:
    """Bin edges [K + 1] as tf.linspace: start + step * i in float32, the last one exact."""
    low, high = torch.tensor([histogram.low, histogram.high])
    step = (high - low) / histogram.bins
    return torch.cat((low + step * torch.arange(histogram.bins, dtype=torch.float32), high.unsqueeze(0)))


@lru_cache(maxsize=64)
def _constants(components: tuple[Component, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Edges [F, K + 1] and pseudocounts [F, 1, 1] float32, whether agents and steps are apart [F, 1, 1] int64.

    Kept, since to bring numbers to a GPU is to wait for it.
    """
    histograms = [_histogram(component) for component in components]
    constants = (
        torch.stack([_edges(histogram) for histogram in histograms]),
        torch.tensor([histogram.pseudocount for histogram in histograms]).view(-1, 1, 1),
        torch.tensor([not component.aggregate_objects for component in components]).long().view(-1, 1, 1),
        torch.tensor([not component.independent_timesteps for component in components]).long().view(-1, 1, 1),
    )
    return tuple(constant.to(device) for constant in constants)


def _bins(values: Tensor, edges: Tensor) -> Tensor:
    """Bin of every value [F, ...]: half-open bins, the last one closed, outliers clipped, NaN in the last bin."""
    low, high = edges[:, :1], edges[:, -1:]
    flat = values.flatten(1)
    clipped = torch.where(flat.isnan(), high, flat).clamp(low, high)
    return (torch.searchsorted(edges, clipped, right=True) - 1).clamp(max=edges.shape[1] - 2).view_as(values)


def _grouped(log: Tensor, sim: Tensor, components: tuple[Component, ...], drop_nan: bool) -> Tensor:
    """Log-likelihoods [F, E, T] of logged values [F, E, T] under simulated ones [F, R, E, T]."""
    edges, pseudocount, agents_apart, steps_apart = _constants(components, log.device)
    features, agents, steps = log.shape
    bins = edges.shape[1] - 1
    feature, agent, step = (torch.arange(count, device=log.device) for count in log.shape)
    # Values of one group are samples of one distribution.
    group = agent.unsqueeze(-1) * (agents_apart * steps) + step * steps_apart
    first = (group + feature.view(-1, 1, 1) * (agents * steps)) * bins  # [F, E, T] row of the group's first bin
    row = first.unsqueeze(1) + _bins(torch.cat((log.unsqueeze(1), sim), dim=1), edges)  # [F, 1 + R, E, T]
    weight = (~torch.isnan(sim)).to(sim.dtype) if drop_nan else torch.ones_like(sim)
    counts = torch.zeros(features * agents * steps * bins, device=log.device)
    counts.index_add_(0, row[:, 1:].flatten(), weight.flatten())
    smoothed = counts.view(features, -1, bins) + pseudocount
    log_probability = torch.log(smoothed) - torch.log(smoothed.sum(-1, keepdim=True))
    return log_probability.flatten()[row[:, 0]]


def log_likelihoods(features: Sequence[tuple[Tensor, Tensor, Component]], drop_nan: bool = False) -> list[Tensor]:
    """Log-likelihoods [E, T] float32 of the logged values of each feature.

    Args:
        features: logged values [E, T], simulated values [R, E, T] and component of each; T may differ.
        drop_nan: ignore simulated NaN, which count in the last bin in Waymo's code.
    """
    alike: dict[tuple[int, torch.Size], list[int]] = {}
    for index, (log, _, component) in enumerate(features):
        alike.setdefault((_histogram(component).bins, log.shape), []).append(index)
    found: dict[int, Tensor] = {}
    for indices in alike.values():
        log, sim = torch.stack([features[i][0] for i in indices]), torch.stack([features[i][1] for i in indices])
        components = tuple(features[index][2] for index in indices)
        found |= zip(indices, _grouped(log, sim, components, drop_nan).unbind(), strict=True)
    return [found[index] for index in range(len(features))]


def left_out(
    log: Tensor, sim: Tensor, component: Component, counted: Tensor, removed: Tensor, drop_nan: bool = False
) -> Tensor:
    """Change of an agent's summed log-likelihood if some values of one rollout of it had not been simulated.

    Values are counted in bins, so what a rollout added is subtracted: exact, and nothing is simulated again.

    Args:
        log: logged values [E, T]. sim: simulated values [R, E, T] of at least two rollouts.
        component: with one distribution for each agent and all steps.
        counted: [E, T] bool, which log-likelihoods are in the sum.
        removed: [T, N] or [R, E, T, N] float32 of 0 and 1, N choices of the values that are left out.
        drop_nan: as in ``log_likelihoods``.

    Returns:
        [R, E, N] float32, the sum without these values minus the sum with all.

    Raises:
        ValueError: one distribution for all agents, or one for each step.
    """
    if component.aggregate_objects or (log.shape[-1] > 1 and not component.independent_timesteps):
        raise ValueError("left_out needs a distribution for each agent and all steps")
    edges, pseudocount, *_ = _constants((component,), log.device)
    bins, smoothing = edges.shape[1] - 1, pseudocount.flatten()
    row = _bins(torch.cat((log.unsqueeze(0), sim)).unsqueeze(0), edges)[0]  # [1 + R, E, T]
    member = (row.unsqueeze(-1) == torch.arange(bins, device=log.device)).to(sim.dtype)
    logged, simulated = member[0], member[1:]
    if drop_nan:
        simulated = simulated * (~torch.isnan(sim)).to(sim.dtype).unsqueeze(-1)
    logged = (logged * counted.unsqueeze(-1)).sum(1)[..., None]  # [E, K, 1]
    counts = simulated.sum((0, 2))[..., None]
    left = counts - simulated.transpose(-1, -2) @ removed  # [R, E, K, N]
    change = torch.log(left + smoothing) - torch.log(counts + smoothing)
    all_bins = bins * smoothing
    total = torch.log(left.sum(-2) + all_bins) - torch.log(counts.sum(-2) + all_bins)
    return (logged * change).sum(-2) - logged.sum(-2) * total
