"""The machine described: nodes, distances and where memory lies."""
