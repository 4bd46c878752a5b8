"""Rules on the config of a run, and facts about the run that they need."""
