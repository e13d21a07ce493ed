"""Ledger: one Parquet file of records per cell, the images beside it, and a manifest that describes the run.

::

    DIR/ledger/manifest.json                 matrix, thresholds, cells, inapplicable ones with reasons, provenance
    DIR/ledger/images-<hash>.npz             the run's clean images
    DIR/ledger/<defense>--<attack>--<norm>--<id>.parquet   the records of one cell
    DIR/ledger/<defense>--<attack>--<norm>--<id>.npz       its adversarial images
    DIR/ledger/<defense>--<kind>--<norm>--<id>.parquet     the records of one study

Every file appears whole or not at all. A cell's Parquet file is written last, so a cell is done if its file exists and
verifies. Each file seals itself (`bench.ledger.seals`). The manifest of a finished run holds the hash of every file.
Only files that verify are read. Nothing here imports torch, so that readers of a ledger start fast.
"""
