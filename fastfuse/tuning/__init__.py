"""Measured rules: which backend is fastest where."""
