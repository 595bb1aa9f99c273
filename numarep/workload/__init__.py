"""What runs: captured traces, their format, and the bundled datasets."""
