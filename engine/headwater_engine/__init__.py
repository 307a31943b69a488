"""The bundled inference engine: paged attention, continuous batching, radix prefix cache."""
