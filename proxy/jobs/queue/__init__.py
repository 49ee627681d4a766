"""The jobs of a mirror as a queue: who waits, who is worked on, when each will be done."""
