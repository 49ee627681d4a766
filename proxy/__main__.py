"""`python -m proxy` is `reliability-proxy`."""

from proxy.cli import main

raise SystemExit(main())
