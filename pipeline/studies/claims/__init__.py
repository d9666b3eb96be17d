"""Each claim of the paper as an experiment: arms that are trained and judged, tables, figures, a verdict."""
