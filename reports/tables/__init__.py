"""Tables: numbers laid out in rows and columns, for any renderer. A table is one module, found by its decorator."""
