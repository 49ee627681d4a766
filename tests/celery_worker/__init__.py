"""A real Celery worker with a small task of the service's kind, as a process of its own."""
