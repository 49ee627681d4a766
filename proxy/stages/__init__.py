"""What a route can be asked to do."""
