"""Where experience comes from: task sources with one interface each."""
