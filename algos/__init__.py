"""How learning happens: learners, the trainer, and what the verbs of the command line do."""
