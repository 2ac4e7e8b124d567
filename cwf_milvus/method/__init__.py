"""The paper's equations, the baselines', late interaction and expansion, as functions of arrays."""
