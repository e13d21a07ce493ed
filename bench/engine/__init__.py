"""Engine: runs one cell. Attacks propose through the oracle, and the judge decides."""
