"""Contracts: all that the author of an attack or a defense needs. Nothing here imports from another room."""
