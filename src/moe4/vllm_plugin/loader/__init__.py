"""`--load-format moe4`: routed experts stay in the release's files, or in a cache of them."""
