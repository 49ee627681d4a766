"""Memory: one budget for all buffers, the container's limit, and the allocator's settings.

Start with `budget.MemoryBudget`.
"""
