"""Verification: judges stored results again and finds alterations."""
