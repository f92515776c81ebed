"""Where a candidate runs and what it costs: devices, meters, measuring, statistics."""
