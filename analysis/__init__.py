"""Reports on results folders; reads results only."""
