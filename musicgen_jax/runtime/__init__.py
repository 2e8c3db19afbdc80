"""The machine: sharding, memory, the cache of compiled programs."""
