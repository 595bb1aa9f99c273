"""What replication does to tables, frames and the work of the kernel (behaviours R1-R39)."""
