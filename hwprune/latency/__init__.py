"""From a device to a latency model: which networks to measure, the table of what was measured, models fitted on it."""
