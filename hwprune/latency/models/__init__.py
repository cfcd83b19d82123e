"""Latency models, one file each, found by name: `lpnet`, `linear`, `forest`, `table_sum`, `macs`."""
