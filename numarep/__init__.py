"""Predict what per-NUMA-node replication of a kernel's read-only memory gains or costs."""
