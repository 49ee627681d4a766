"""What the app takes of the machine: disk, temporary files, memory, processes."""
