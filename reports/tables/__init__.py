"""Tables: statistics laid out in rows and columns, ready for any renderer."""
