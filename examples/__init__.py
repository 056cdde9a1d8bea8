"""Methods, losses, data and students of one's own, which a configuration names by import path."""
