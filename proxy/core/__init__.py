"""What every room may use: errors, headers, clocks, tasks, and the resources of the process.

It imports no other room. `errors` lists every way in which the proxy itself refuses or fails an
exchange; `tasks` runs every background loop; `vitals` holds the state of one running proxy.
"""
