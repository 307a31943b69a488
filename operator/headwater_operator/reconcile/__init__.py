"""One ModelDeployment brought to what its spec says: `loop` says when, `reconciler` in which order."""
