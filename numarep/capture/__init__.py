"""Capture: boots a stock kernel under emulation and writes what it executes as a dataset."""
