"""What the programs share: their shell, their files, one trainer, one runner, and their graphs."""
