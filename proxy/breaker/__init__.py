"""Circuit breakers shared by the fleet, retries, bulkheads, ejection and stale answers."""
