"""The engine's loop: what is asked for, what runs next, and what came of it."""
