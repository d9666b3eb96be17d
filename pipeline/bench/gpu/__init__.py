"""The check of a GPU: agreement with the CPU, speed, and waits of the host."""
