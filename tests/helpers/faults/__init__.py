"""Faults of the machine: disks that fail, power cuts, signals."""
