"""Configs of the programs; each docstring states command, hardware, wall time and expected figures."""
