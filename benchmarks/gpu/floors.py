"""What a GPU must do at least: bytes that move, operations that are computed. Arithmetic that needs no GPU."""


def decode_bytes(weights: int, kv_bytes: int, sequences: int, context: float, shared: int = 0) -> float:
    """That a decoding step reads: all weights once, and of each context `kv_bytes` a token.

    `shared`: tokens at the beginning that all contexts have in common, to be read once.
    """
    return weights + kv_bytes * (sequences * (context - shared) + shared)


def attention_bytes(sequences: int, context: int, kv_bytes: int, query_bytes: int, shared: int = 0) -> float:
    """That attention of one layer moves for tokens that decode: keys and values, queries, and results as large."""
    return decode_bytes(0, kv_bytes, sequences, context, shared) + 2 * sequences * query_bytes


def causal_operations(tokens: int, context: int, features: int) -> float:
    """Of attention of the last `tokens` of `context`, over `features` of all query heads, in two products."""
    pairs = tokens * (context - tokens) + tokens * (tokens + 1) / 2
    return 4.0 * features * pairs
