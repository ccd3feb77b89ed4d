"""Callbacks that measure a run at their cadence."""
