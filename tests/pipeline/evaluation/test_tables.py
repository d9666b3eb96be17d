"""The writers of tables."""

from __future__ import annotations

import math

from pipeline.execution.tables import csv_table, interval_cell, markdown_table, render_table

ROWS = [["a", "b"], ["one, two", "2"]]


def test_a_table_as_text_markdown_and_csv() -> None:
    assert render_table(ROWS) == "a         b\n-----------\none, two  2"
    assert markdown_table(ROWS) == "| a | b |\n| --- | --- |\n| one, two | 2 |"
    assert csv_table(ROWS) == 'a,b\n"one, two",2\n'


def test_cells_of_figures_with_intervals() -> None:
    assert interval_cell(0.6684, (0.6341, 0.6959)) == "0.668 [0.634, 0.696]"
    assert interval_cell(0.5, (-0.25, 1.0), 2, signed=True) == "+0.50 [-0.25, +1.00]"
    assert interval_cell(0.5, (math.nan, math.nan), 1) == interval_cell(0.5, None, 1) == "0.5"
    assert interval_cell(math.nan, (0.0, 1.0)) == interval_cell(None) == "-"
