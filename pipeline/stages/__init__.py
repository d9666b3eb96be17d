"""One file a stage of `make stages`."""
