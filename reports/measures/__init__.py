"""Measures: the numbers of a run, computed once, for all tables, figures and pages."""
