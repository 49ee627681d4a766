"""What every room may use: errors, headers, clocks, tasks, and the resources of the process.

Knows nothing of the other rooms. `errors` lists every way in which the proxy itself refuses or
fails an exchange; `tasks` runs every background loop; `vitals` holds what one running proxy knows
of itself.
"""
