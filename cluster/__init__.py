"""Runs: a whole system on real nodes, its load, its report and the `pliant` command."""
