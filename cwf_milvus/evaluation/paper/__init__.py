"""The tables, figures and baselines of the paper."""
