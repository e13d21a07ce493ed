"""Attacks: one module per attack written here, one adapter per library."""
