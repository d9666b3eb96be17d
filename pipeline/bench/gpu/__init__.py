"""What a GPU does with this project: whether it computes what a CPU does, how fast, where it waits."""
