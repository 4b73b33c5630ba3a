"""The verbs of the command line, by what they are for. Each imports what it needs when it is called."""
