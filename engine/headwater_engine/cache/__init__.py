"""Who owns which KV block: a pool of free ones, a radix tree of reusable ones, and leases of running requests."""
