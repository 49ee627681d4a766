"""One exchange, top to bottom: route, attempt, relay, rescue."""
