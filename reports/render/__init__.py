"""Renderers: tables as CSV, Markdown and LaTeX, and the page."""
