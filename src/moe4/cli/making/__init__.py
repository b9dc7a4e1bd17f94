"""Commands that make and check a release."""
