"""Tests of the capture: decoding of raw logs, the command, and one real boot."""
