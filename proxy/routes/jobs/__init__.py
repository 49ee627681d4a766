"""What a route does with jobs: `roles` creates, reads, lists and deletes; the rest assists."""
