"""Load generators: each runs as a process of its own, pinned, and prints one JSON object."""
