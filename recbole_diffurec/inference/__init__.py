"""From a checkpoint to lists: in Python, from file to file, over HTTP, in other runtimes."""
