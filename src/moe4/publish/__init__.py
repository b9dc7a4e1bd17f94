"""What is published with a release: the report and the model card, from measured results only."""
