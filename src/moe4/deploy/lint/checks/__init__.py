"""What is checked: a server's needs, its pod, the services before it, the values of objects."""
