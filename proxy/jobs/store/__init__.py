"""The durable side of a mirror: `store` writes jobs in groups and answers questions; `sql` has
every statement."""
