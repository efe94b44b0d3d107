"""One module for each outside thing, each importing exactly one library."""
