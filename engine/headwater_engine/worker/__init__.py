"""One rank: a model, its device and its KV cache. Does what a `Step` says, and decides nothing."""
