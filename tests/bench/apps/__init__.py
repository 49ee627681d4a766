"""Forwarders as an ordinary user of aiohttp or FastAPI would write them, to compare with."""
