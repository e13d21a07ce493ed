"""Planning: turns a matrix file into cells and studies, and finds which of them already have results."""
