"""Stand-in services and a guided tour."""
