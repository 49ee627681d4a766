"""`python -m tests.http1.general_path run ...`: the proxy with its plain path shut.

Every exchange then takes the general path, so that a test can put the two side by side.
"""

from __future__ import annotations

import sys

from proxy.cli import main
from proxy.pipeline import plain

if __name__ == "__main__":
    plain._prepare = lambda data, listener: None
    sys.exit(main())
