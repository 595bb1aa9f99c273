"""Sweeps: a grid of runs, planned, executed and stored; the only layer that knows Hydra and Ray."""
