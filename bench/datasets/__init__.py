"""Datasets: cards, file formats and downloads."""
