"""Tables: numbers laid out in rows and columns, ready for any renderer. Each module is one table, found by scanning."""
