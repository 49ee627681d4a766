"""A durable copy of every job: captured from Redis, kept in SQLite, given back."""
