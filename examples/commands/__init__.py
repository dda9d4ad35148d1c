"""What each program can be told on its command line. Nothing here waits for torch."""
