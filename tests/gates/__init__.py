"""Rules about the code that a linter does not know, each a script of the standard library alone."""
