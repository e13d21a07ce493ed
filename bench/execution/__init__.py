"""Execution: carries out a plan, and judges candidates imported from outside."""
