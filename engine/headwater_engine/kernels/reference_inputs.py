"""From what the host says of a step to what the model takes, in NumPy: the definition, and what CPUs run.

NumPy takes a good deal less time for an operation than torch, and all of these are small.
"""

import numpy as np

from headwater_engine.kernels.interface import BLOCK_SIZE, FlatBatch, SeatTables, Told


def spread(told: Told, tables: SeatTables, batch: FlatBatch) -> None:
    """See `Kernels.spread`."""
    attention, blocks = batch.attention, tables.blocks.numpy()
    if told.blocks.shape[1]:
        places, news = told.blocks.numpy()
        blocks.reshape(-1)[places] = news
    owners, seats = told.owners.numpy(), told.seats.numpy()
    width = -(-attention.longest_context // BLOCK_SIZE)
    block_tables = attention.block_tables.numpy()
    block_tables[:, :width] = blocks[seats, :width]
    # A token is as far from the end of its context as it is from the first one of the next sequence.
    firsts = attention.context_lengths.numpy() - attention.query_starts.numpy()[1:]
    positions = attention.positions.numpy()
    positions[:] = firsts[owners] + np.arange(len(owners))
    slots = attention.slots.numpy()
    slots[:] = block_tables[owners, positions // BLOCK_SIZE]
    slots *= BLOCK_SIZE
    slots += positions % BLOCK_SIZE
    tokens = told.tokens.numpy()
    batch.tokens.numpy()[:] = np.where(tokens < 0, np.maximum(tables.last.numpy()[seats[owners]], 0), tokens)
    batch.rows.numpy()[:], batch.seats.numpy()[:] = told.rows.numpy()
