"""The command line: arguments in, exit code out.

Start with `main.main`. Commands that ask a running proxy go through `admin_client`.
"""
