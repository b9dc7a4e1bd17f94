"""`moe4 prove`: everything that is measured of a release, in one command."""
