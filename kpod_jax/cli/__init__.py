"""What the command line adds: checks of a configuration, its help and its reference."""
