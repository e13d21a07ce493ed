"""Runs: loads, selects and combines what the ledger holds."""
