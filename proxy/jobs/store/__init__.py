"""The durable side of a mirror: `store` writes jobs to SQLite in groups and reads them; `sql` has
every statement; `inspection` reads for operators and the trace."""
