"""What is trained: tasks (one file each), models and data sets, by name or from a user's own file."""
