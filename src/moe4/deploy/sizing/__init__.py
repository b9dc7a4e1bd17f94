"""Whether a release fits a machine, and which machine to take."""
