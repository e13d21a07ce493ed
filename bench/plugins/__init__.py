"""Plugins: attacks and defenses that are built in, in local files or in installed packages."""
