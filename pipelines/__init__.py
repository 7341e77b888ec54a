"""What each command does, start to end. Owns files, processes and progress."""
