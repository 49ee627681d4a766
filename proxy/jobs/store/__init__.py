"""The durable side of a mirror: `store` writes jobs to SQLite in groups, `reader` reads them, `sql`
has every statement; `inspection` reads for operators and the trace."""
