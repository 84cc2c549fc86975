"""The memories, one family per file. Importing a family registers it."""
