"""Launches and waits are those of code whose operators are known."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.bench.launches import LaunchCounter

HERE = Path(__file__).relative_to(Path(__file__).parents[3])


def test_launches_are_operators_that_compute() -> None:
    values = torch.arange(12.0).view(3, 4)
    with LaunchCounter() as counter:
        (values @ values.T).relu().sum(0)  # mm, relu, sum; the transposition is a view
        values[:, 1:].unsqueeze(0).expand(5, -1, -1)  # views alone
        torch.empty(3)  # nothing is written
    assert counter.launches == {"mm": 1, "relu": 1, "sum": 1}
    assert counter.waited == 0


def test_waits_are_reads_sizes_that_depend_on_values_and_python_numbers() -> None:
    values = torch.arange(6.0)
    with LaunchCounter() as counter:
        values.max().item()
        values[values > 2]
        values.new_tensor([1.0, 2.0])
        values[torch.zeros_like(values, dtype=torch.int64)]  # row numbers: no wait
        torch.full((3,), 2.0)
        torch.where(values > 1, values, 0.0)
    operators = sorted(place.split(" at ")[0] for place in counter.waits)
    assert operators == ["_local_scalar_dense", "index", "lift_fresh"]
    assert all(f"{HERE}:" in place for place in counter.waits)


def test_checks_of_a_cpu_alone_are_not_counted() -> None:
    index, weight = torch.tensor([0, 2]), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    with LaunchCounter() as counter:
        torch.nn.functional.one_hot(index, 3)
        weight.sum().backward()
        optimizer.step()
    assert counter.waited == 0
    assert counter.launches["one_hot"] == 2
    with LaunchCounter() as counter:
        int(index[0])
    assert counter.waited == 1
