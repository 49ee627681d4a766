"""What contains failures: `circuit/`, retries, bulkheads, outlier ejection, health checks, rate
limits and stale answers. Each decides in synchronous code that takes the time as an argument."""
