"""Metrics that other processes send in statsd packets: DogStatsD over UDP and unix datagrams."""
