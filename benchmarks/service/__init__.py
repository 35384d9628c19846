"""How fast the service answers: a real server, asked from another process."""
