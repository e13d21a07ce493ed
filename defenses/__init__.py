"""Defenses: one module per defense."""
