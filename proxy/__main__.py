"""`python -m proxy` is `reliability-proxy`."""

from proxy.cli.main import main

raise SystemExit(main())
