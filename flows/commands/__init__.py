"""Commands of the command line, one module each (two where they share all options)."""
