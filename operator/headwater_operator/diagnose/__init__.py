"""What is wrong with pods, volumes and specs, in words that help. Nothing here changes anything."""
