"""The kernel: address ranges, image, frames and page tables."""
