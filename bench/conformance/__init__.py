"""Conformance: checks that a plugin keeps its contract."""
