"""Studies: what a run measures on a defense besides attacks. One module per study."""
