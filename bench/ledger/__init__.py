"""Ledger: one Parquet file of records per chunk of a cell, the images beside it, and a manifest that describes the run.

::

    DIR/ledger/manifest.json                 matrix, thresholds, cells, inapplicable ones with reasons, provenance
    DIR/ledger/images-<hash>.npz             the run's clean images
    DIR/ledger/<defense>--<attack>--<norm>--<id>--<chunk>.parquet   the records of one chunk of a cell
    DIR/ledger/<defense>--<attack>--<norm>--<id>--<chunk>.npz       its adversarial images
    DIR/ledger/<defense>--<kind>--<norm>--<id>.parquet              the records of one study

Every file appears whole or not at all. A Parquet file is written after its images, so a chunk is done if its Parquet
file exists and verifies. No file is written again, unless samples failed. A cell counts when all its chunks are there.
Each file seals itself (`bench.ledger.seals`). The manifest of a finished run holds the hash of every file.
Only files that verify are read. Nothing here imports torch, so that readers of a ledger start fast.
"""
