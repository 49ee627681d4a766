"""The guided tour: steps on a running world, each of which shows one promise kept."""
