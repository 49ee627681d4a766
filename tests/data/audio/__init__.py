"""Generated audio samples."""
