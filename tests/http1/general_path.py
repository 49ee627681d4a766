"""`python -m tests.http1.general_path run ...`: the proxy with its fast path off.

Every exchange then takes the general path, so that a test can put the two side by side.
"""

from __future__ import annotations

import sys

from proxy.cli.main import main
from proxy.server import fast_path

if __name__ == "__main__":
    fast_path._prepare = lambda data, listener: None
    sys.exit(main())
