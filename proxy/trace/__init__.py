"""What happened: a durable, bounded record, and the story of one ID that is read from it."""
