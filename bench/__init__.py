"""fastfuse against its peers, side by side in one process. `make bench` runs it."""
