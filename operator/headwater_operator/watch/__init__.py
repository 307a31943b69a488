"""What the watches have seen, and what can be found in it at once."""
