"""Talk with other implementations: golden vectors, checks of candidates, the doctor."""
