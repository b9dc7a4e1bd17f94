"""What is not routed experts."""
