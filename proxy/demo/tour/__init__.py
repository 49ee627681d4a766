"""The guided tour: steps in a running world, each of which demonstrates one feature."""
