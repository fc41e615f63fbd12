"""What the user asked for: command line, environment and Configuration files, as frozen data."""
