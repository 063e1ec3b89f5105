"""Measures: what a variant costs on each pool and how right it is, before it is served."""
