"""A third-party plugin for assay: one defense and one attack, found through entry points."""
