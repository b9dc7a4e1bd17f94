"""Commands that serve a release and talk to it."""
